"""A deployment on one server: its folder, its services, its runs and its phones.

`folder` says where everything lies, `create` makes it, `services` lists what runs, `processes` runs it on this machine,
`environment` says what services find in theirs, `superlink` speaks with Flower's SuperLink, `runs` follows runs,
`enrolment` lets phones in and out, `enrolment_service` those in that have one of the `tokens`, `check` looks for what
is wrong, and `android` brings the client to phones on a cable.
"""

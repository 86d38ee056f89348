"""Errors that a person reads: each names the value, the bound and the remedy."""

from typing import Literal


class FedcaptorError(Exception):
    """Base of all errors that the command line prints without a traceback."""


class ConfigError(FedcaptorError):
    """A configuration value is unknown or outside its bound."""


class DataError(FedcaptorError):
    """A data source breaks a rule; the message names the file and the rule."""


class ModelError(FedcaptorError):
    """A model or its weights cannot be loaded, traced or sliced."""


class PlanError(FedcaptorError):
    """A budget cannot be met; the message names the nearest possible one."""


class PrivacyError(FedcaptorError):
    """A request would break a privacy promise; the phone or server declines."""


class MissingError(FedcaptorError, ImportError):
    """A library of an extra is not installed; the message has the command that installs it."""


class StateError(FedcaptorError):
    """Stored state is damaged or belongs to another run."""


class PostponedError(StateError):
    """A round cannot go on now, and nobody is asked; the text says what it waits for. `reason`: a short code."""

    def __init__(self, reason: Literal["phones", "budget"], text: str) -> None:
        super().__init__(text)
        self.reason = reason


class NormalisationWarning(UserWarning):
    """Images are perhaps not normalised as in the network's training; the message says how to tell."""


class LinkError(FedcaptorError):
    """A server cannot be reached or refuses this phone; the text says what to change. `again`: time may help."""

    def __init__(self, text: str, again: bool = True) -> None:
        super().__init__(text)
        self.again = again


class WireError(FedcaptorError):
    """A message is malformed. `reason` is a short code from `messages.REASONS`, safe as a metric label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason

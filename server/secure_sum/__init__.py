"""Hold the server's side of one secure sum; `fedcaptor.common.secure` has the protocol that both sides share."""

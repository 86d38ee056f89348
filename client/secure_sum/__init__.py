"""Hold a phone's side of one secure sum; `fedcaptor.common.secure` has the protocol that both sides share."""

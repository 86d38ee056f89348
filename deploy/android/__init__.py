"""Phones on a cable: `bundle` builds what they need, `install` brings, starts and removes it, `adb` carries that."""

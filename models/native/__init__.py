"""The decode step in native code: compiled on first use, the plain torch step where that is not possible."""

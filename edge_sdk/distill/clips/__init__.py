"""Clip classification: networks that see a clip's frames all at once in training and one by one on the device."""

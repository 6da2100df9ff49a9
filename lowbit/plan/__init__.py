"""The plan: what is quantized and how, as plain data that prints, saves and loads."""

"""How each library builds its networks; one file a library, which is imported on first use."""

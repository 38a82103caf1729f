"""How each library builds its networks, one file a library; the libraries are imported on first use."""

"""DeepRecSys as a client sees it: the generated messages, the client and its errors."""

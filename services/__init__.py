"""The deeds of DeepRecSys: serving, models, load and the command line."""

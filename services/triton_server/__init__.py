"""A real Triton server without Docker or a GPU: installed beside the project, started as a child process."""

"""See the files of this folder; the README prints one line for each."""

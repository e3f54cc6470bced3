"""Tests of the reporter: parsers and collectors by themselves, the program as a process against stub servers."""

"""What the Makefile and tox call to build, check and test the project; none of it is shipped."""

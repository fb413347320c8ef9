"""`attestgate doctor`: what is wrong with an installation, found from outside."""

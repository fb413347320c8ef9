"""Linux IMA measurement lists, and the policies that they are judged by."""

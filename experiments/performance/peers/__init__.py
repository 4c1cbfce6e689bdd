"""The same step in other libraries, written as a good user of each would write it."""

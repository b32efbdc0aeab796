"""pausebench: does a language model that pauses before it answers answer better?"""

__version__ = "0.1.0"

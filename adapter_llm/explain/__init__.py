"""Why an answer is what it is: gates, adapter attention, and where in a picture the connector looked.

Nothing here runs, nor is loaded, unless an explanation is asked for.
"""

from .answer import explain
from .explanation import Explanation, View

__all__ = ["Explanation", "View", "explain"]

"""What the notebooks import: exercises, predictions, figures with text alternatives, and widgets."""

from rp_lib.course.exercise import exercise
from rp_lib.course.home import home
from rp_lib.course.predict import predict
from rp_lib.course.show import say, show

__all__ = ["exercise", "home", "predict", "say", "show"]

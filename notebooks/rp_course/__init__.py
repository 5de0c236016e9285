"""What the notebooks import: exercises, predictions, figures with text alternatives, and widgets."""

from rp_course.drawing import show_drawing
from rp_course.exercise import exercise
from rp_course.home import home
from rp_course.predict import predict
from rp_course.show import say, show

__all__ = ["exercise", "home", "predict", "say", "show", "show_drawing"]

"""All widgets: each has ``.slider``, ``.image``, ``.stops``, ``.at(stop)``, and is a picture where no kernel runs."""

from rp_lib.course.alpha import alpha_widget
from rp_lib.course.padding import padding_widget
from rp_lib.course.points import points_widget
from rp_lib.course.scores import threshold_widget
from rp_lib.course.slides import slider_widget

__all__ = ["alpha_widget", "padding_widget", "points_widget", "slider_widget", "threshold_widget"]

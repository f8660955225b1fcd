"""A plugin of fss-svf: importing it registers its method."""

from fss_svf_example import brightness as brightness

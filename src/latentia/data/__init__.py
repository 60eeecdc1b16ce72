"""Real data that ships with libraries, folders of images, data sets by name."""

"""Labels that are drawn: polygons, run-lengths and masks, in the formats of annotation tools."""

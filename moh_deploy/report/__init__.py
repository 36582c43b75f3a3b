"""What a job has to say, for machines (`to_json`) and for people (`__rich__`)."""

"""The front of the embedded S3: whose a request is and whether it may; rclone behind it keeps the objects."""

from torpor.api.s3.front import S3Front as S3Front

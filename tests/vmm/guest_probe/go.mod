module torpor/tests/guestprobe

go 1.22

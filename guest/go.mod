module torpor/guest

go 1.25

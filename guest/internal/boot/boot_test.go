package boot

import "testing"

func TestTheModeIsTheLastOfTheCommandLine(t *testing.T) {
	for line, wanted := range map[string]Mode{
		"console=ttyS0 torpor.mode=application quiet": Application,
		"torpor.mode=probe":                           Probe,
		"torpor.mode=probe torpor.mode=builder":       Builder,
		"torpor.mode=":                                "",
		"torpor.mode=nonsense":                        "",
		"x.torpor.mode=probe":                         "",
		"":                                            "",
	} {
		if got, err := ModeOf(line); got != wanted || (err == nil) != (wanted != "") {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
}

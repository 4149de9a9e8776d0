package userid

import "testing"

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text    string
		id      uint32
		numeric bool
		fails   bool
	}{
		{text: "0", numeric: true},
		{text: "1000", id: 1000, numeric: true},
		{text: "+1000", id: 1000, numeric: true},
		{text: "0001000", id: 1000, numeric: true},
		{text: "-0", numeric: true},
		{text: "4294967294", id: Max, numeric: true},
		{text: "4294967295", numeric: true, fails: true},
		{text: "4294968296", numeric: true, fails: true},
		{text: "-1", numeric: true, fails: true},
		{text: "99999999999999999999999999", numeric: true, fails: true},
		{text: ""},
		{text: "root"},
		{text: " 1000"},
		{text: "1000 "},
		{text: "0x0"},
		{text: "1e3"},
		{text: "1_000"},
		{text: "١"},
	} {
		id, numeric, err := Parse(c.text)
		if id != c.id || numeric != c.numeric || (err != nil) != c.fails {
			t.Errorf("Parse(%q) = %d, %t, %v", c.text, id, numeric, err)
		}
	}
}

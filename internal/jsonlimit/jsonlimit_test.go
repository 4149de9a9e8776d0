package jsonlimit

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func limits() Limits {
	entry := Shape{Members: map[string]Shape{"urls": {Max: 2}}}
	return Limits{Depth: 4, Values: 20, Shape: Shape{
		Distinct: true,
		Members: map[string]Shape{
			"History":   {Max: 3},
			"config":    {Distinct: true, Members: map[string]Shape{"Labels": {Max: 2}, "Task": {}}},
			"manifests": {Elements: &entry},
		},
	}}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct{ data, wantErr string }{
		"plain":                  {`{"history":[{},{},{}],"config":{"labels":{"a":"1","A":"2"}},"x":[1,2.5e3,true,null]}`, ""},
		"scalar":                 {` "\"\\" `, ""},
		"too many elements":      {`{"history":[{},{},{},{}]}`, "History has more than 3 entries"},
		"other case":             {`{"HISTORY":[1,2,3,4]}`, "History has more than 3 entries"},
		"escaped key":            {`{"\u0068istory":[1,2,3,4]}`, "History has more than 3 entries"},
		"folded key":             {`{"config":{"tas\u212a":1,"Ta\u017fk":2}}`, `config has the key "Task" twice`},
		"too many members":       {`{"config":{"labels":{"a":1,"b":2,"c":3}}}`, "Labels has more than 2 entries"},
		"below an array":         {`{"manifests":[{"urls":[1,2]},{"urls":[1,2,3]}]}`, "urls has more than 2 entries"},
		"the same key":           {`{"history":[],"history":[]}`, "twice"},
		"the same but for case":  {`{"history":[],"History":null}`, "twice"},
		"the same, unknown key":  {`{"x":1,"x":2}`, ""},
		"the same of a map":      {`{"config":{"labels":{"a":1,"a":2}}}`, ""},
		"deep":                   {`[[[[1]]]]`, ""},
		"too deeply nested":      {`[[[[[1]]]]]`, "within each other"},
		"never closed":           {strings.Repeat("[", 1<<20), "within each other"},
		"never closed by others": {`{"x":` + strings.Repeat(`{"x":`, 1<<20), "within each other"},
		"too many values":        {`[` + strings.Repeat("0,", 1<<20), "more than 20 values"},
		"truncated string":       {`{"x":"abc`, "unexpected end"},
		"truncated escape":       {`"\`, "unexpected end"},
		"truncated object":       {`{"x":1`, "unexpected end"},
		"no value":               {`{"x":}`, "no value"},
		"no key":                 {`{1:2}`, "key is not a string"},
		"no colon":               {`{"x" 1}`, "key without a value"},
		"empty":                  {"", "unexpected end"},
		"HTML":                   {"<html>", ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := Check([]byte(c.data), limits())
			switch {
			case c.wantErr == "" && err != nil:
				t.Error(err)
			case c.wantErr != "" && (err == nil || !strings.Contains(err.Error(), c.wantErr)):
				t.Errorf("error %v, want %q", err, c.wantErr)
			case err != nil && !errdefs.IsOutOfRange(err) && !errdefs.IsInvalidArgument(err):
				t.Errorf("error %v has no class", err)
			}
		})
	}
}

// Check allocates no memory for a document within the limits, whatever its size.
func TestCheckAllocatesNothing(t *testing.T) {
	data := []byte(`{"config":"` + strings.Repeat("x", 1<<20) + `","x":[` + strings.Repeat(`{"some key of no field":1},`, 10000) + `0]}`)
	l := limits()
	l.Values = 1 << 20
	if n := testing.AllocsPerRun(3, func() {
		if err := Check(data, l); err != nil {
			t.Fatal(err)
		}
	}); n > 20 {
		t.Errorf("%v allocations", n)
	}
}

// Check never rejects valid JSON within the limits, and a document that it accepts never exceeds
// them once decoded by encoding/json.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{`{"history":[{},{}]}`, `{"hi\u017ftory":[1,2,3,4]}`, `["\\\"",-1.5e+7,{"":[]}]`, `{"config":{"Labels":{}}}`, `[[[[]]]]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		err := Check(data, limits())
		if err == nil {
			var doc struct {
				History []json.RawMessage
				Config  struct{ Labels map[string]json.RawMessage }
			}
			_ = json.Unmarshal(data, &doc)
			if len(doc.History) > 3 || len(doc.Config.Labels) > 2 {
				t.Fatalf("%d and %d entries", len(doc.History), len(doc.Config.Labels))
			}
			return
		}
		wide := Limits{Depth: 1 << 20, Values: 1 << 30}
		if err := Check(data, wide); err != nil && json.Valid(data) {
			t.Fatalf("valid JSON is refused: %v", err)
		}
	})
}

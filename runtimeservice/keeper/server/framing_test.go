package server

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var at = time.Date(2026, 8, 1, 12, 30, 0, 5, time.UTC)

func TestFrame(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for name, tc := range map[string]struct {
		data string
		last bool
		want []string // tag and text
		used int
	}{
		"nothing":                      {"", false, nil, 0},
		"nothing at the end":           {"", true, nil, 0},
		"lines":                        {"a\nb\n", false, []string{"F a", "F b"}, 4},
		"empty lines":                  {"\n\n", false, []string{"F ", "F "}, 2},
		"unfinished":                   {"a\nbc", false, []string{"F a"}, 2},
		"unfinished at the end":        {"a\nbc", true, []string{"F a", "P bc"}, 4},
		"carriage return is text":      {"a\r\n", false, []string{"F a\r"}, 3},
		"any bytes":                    {"\x00\xff \xfe\n", false, []string{"F \x00\xff \xfe"}, 5},
		"longest line":                 {long + "\n", false, []string{"F " + long}, maxLine + 1},
		"longest line without newline": {long, false, nil, 0},
		"longest line, at the end":     {long, true, []string{"P " + long}, maxLine},
		"one too long":                 {long + "y\n", false, []string{"P " + long, "F y"}, maxLine + 2},
		"one too long, unfinished":     {long + "y", false, []string{"P " + long}, maxLine},
		"three pieces":                 {long + long + "z\nn\n", false, []string{"P " + long, "P " + long, "F z", "F n"}, 2*maxLine + 4},
	} {
		t.Run(name, func(t *testing.T) {
			h := head(nil, at, "stdout")
			out, used, full := frame(make([]byte, 0, 1<<20), h, []byte(tc.data), tc.last)
			var want string
			for _, l := range tc.want {
				want += "2026-08-01T12:30:00.000000005Z stdout " + l + "\n"
			}
			if diff := cmp.Diff(want, string(out)); diff != "" || used != tc.used || full {
				t.Errorf("used %d, want %d; full %v\n%s", used, tc.used, full, diff)
			}
		})
	}
}

func TestHeadSize(t *testing.T) {
	for _, stream := range streamNames {
		if got := len(head(nil, at, stream)); got != headSize {
			t.Errorf("head of %s has %d bytes, headSize is %d", stream, got, headSize)
		}
	}
	if cap(make([]byte, 0, 2*batch)) < headSize+maxLine+1 {
		t.Error("the output buffer does not hold the longest line")
	}
}

// unframe reads a log as the kubelet does: it joins P and F lines.
func unframe(t *testing.T, framed []byte) (text []byte, endsOpen bool) {
	t.Helper()
	for line := range bytes.Lines(framed) {
		parts := bytes.SplitN(line, []byte(" "), 4)
		if len(parts) != 4 || string(parts[1]) != "stderr" || !bytes.HasSuffix(line, []byte("\n")) {
			t.Fatalf("line %q", line)
		}
		body := parts[3][:len(parts[3])-1]
		if len(body) > maxLine {
			t.Fatalf("text of %d bytes", len(body))
		}
		text = append(text, body...)
		switch string(parts[2]) {
		case "F":
			text = append(text, '\n')
			endsOpen = false
		case "P":
			endsOpen = true
		default:
			t.Fatalf("tag %q", parts[2])
		}
	}
	return text, endsOpen
}

// Property: however output is split into pieces, and however small the buffer of framed lines is,
// the log contains the output.
func FuzzLogFraming(f *testing.F) {
	f.Add([]byte("a\nb"), uint16(1), uint16(0))
	f.Add(bytes.Repeat([]byte("x"), 2*maxLine+1), uint16(5000), uint16(100))
	f.Add([]byte(strings.Repeat("\n", 500)), uint16(7), uint16(3))
	f.Fuzz(func(t *testing.T, data []byte, piece, room uint16) {
		data = bytes.Repeat(data, 1+int(piece)%5)
		h := head(nil, at, "stderr")
		var log, pending []byte
		rest := data
		buf := make([]byte, 0, headSize+maxLine+1+int(room))
		step := max(1+int(piece), len(data)/100)
		for len(rest) > 0 {
			n := min(len(rest), step)
			pending = append(pending, rest[:n]...)
			rest = rest[n:]
			for {
				out, used, full := frame(buf, h, pending, len(rest) == 0)
				log = append(log, out...)
				pending = pending[used:]
				if !full {
					break
				}
				if used == 0 {
					t.Fatal("frame reports a full buffer but returns no line")
				}
			}
			if len(rest) > 0 && len(pending) > maxLine {
				t.Fatalf("%d bytes remain pending", len(pending))
			}
		}
		if len(pending) != 0 {
			t.Fatalf("%d bytes are pending at the end", len(pending))
		}
		got, open := unframe(t, log)
		unfinished := len(data) > 0 && data[len(data)-1] != '\n'
		if open != unfinished || !bytes.Equal(got, data) {
			t.Fatalf("open %v; got %d bytes, want %d", open, len(got), len(data))
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	for _, size := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			data := bytes.Repeat(append(bytes.Repeat([]byte("x"), size-1), '\n'), batch/size)
			out := make([]byte, 0, 2*batch)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				h := head(nil, at, "stdout")
				for rest := data; len(rest) > 0; {
					_, used, _ := frame(out[:0], h, rest, true)
					rest = rest[used:]
				}
			}
		})
	}
}

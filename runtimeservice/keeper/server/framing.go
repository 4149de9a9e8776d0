package server

import (
	"bytes"
	"time"
)

// maxLine is where a line of output is split, in bytes of text.
const maxLine = 16 << 10

// headSize is the length of "2006-01-02T15:04:05.000000000Z stdout F ".
const headSize = 30 + 1 + 6 + 1 + 2

// head is the beginning of a log line up to its tag, the same for all lines of
// one batch.
func head(dst []byte, at time.Time, stream string) []byte {
	dst = at.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000000Z")
	dst = append(dst, ' ')
	dst = append(dst, stream...)
	return append(dst, ' ')
}

// frame appends the CRI log lines of data to out, as many as fit in out's
// capacity, and returns how many bytes of data they took. What it leaves is,
// when full is false, less than a line: at most maxLine bytes without newline,
// whose end is still to come. With last set the end has come, and the rest is
// a line (tag F) of its own.
//
// A text longer than maxLine becomes several lines, all but the last with the
// tag P.
func frame(out, head, data []byte, last bool) (_ []byte, used int, full bool) {
	for used < len(data) {
		rest := data[used:]
		text, size, tag := cut(rest, last)
		if size == 0 {
			return out, used, false
		}
		if len(out)+len(head)+len(text)+3 > cap(out) {
			return out, used, true
		}
		out = append(out, head...)
		out = append(out, tag, ' ')
		out = append(out, text...)
		out = append(out, '\n')
		used += size
	}
	return out, used, false
}

// cut returns the text of the first line of data, how many bytes it and its
// newline take, and its tag; size 0 if more data is needed to know.
func cut(data []byte, last bool) (text []byte, size int, tag byte) {
	window := data[:min(len(data), maxLine+1)]
	if i := bytes.IndexByte(window, '\n'); i >= 0 {
		return data[:i], i + 1, 'F'
	}
	if len(data) > maxLine {
		return data[:maxLine], maxLine, 'P'
	}
	if last && len(data) > 0 {
		return data, len(data), 'F'
	}
	return nil, 0, 0
}

// Package jsonlimit checks untrusted JSON documents against limits before they are decoded.
//
// encoding/json turns two bytes such as {} into a struct of hundreds, matches keys without regard
// to case, and uses the last of two equal keys. Check scans a document once and allocates no memory
// in proportion to it. It rejects documents that would be too expensive to decode, and those that
// two parsers could read differently. It does not validate: a document that it accepts may still be
// invalid JSON.
package jsonlimit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Limits are the limits for a document as a whole.
type Limits struct {
	Depth  int   // nesting of arrays and objects
	Values int   // values of any kind, in arrays and objects
	Shape  Shape // of the outermost value
}

// Shape has the limits for the value at one place of a document, if that is an array or an object.
// The zero Shape has no limits.
type Shape struct {
	// Max is the maximum number of elements or members; 0 means no limit.
	Max int
	// Distinct rejects an object with two keys that encoding/json decodes into the same field:
	// equal, or equal except for case. It applies to the keys in Members.
	Distinct bool
	// Members maps keys of an object, without regard to case, to the shapes of their values.
	Members map[string]Shape
	// Elements is the shape of every element of an array.
	Elements *Shape
}

// Check returns errdefs.ErrOutOfRange for a document that exceeds a limit, and
// errdefs.ErrInvalidArgument for ambiguous keys, a truncated document, or a syntax error that it
// notices. Its cost is linear in the length of data. It may be called concurrently.
func Check(data []byte, l Limits) error {
	s := scanner{data: data, limits: l}
	if err := s.value(l.Shape, "the document", 0); err != nil {
		return fmt.Errorf("check JSON: %w", err)
	}
	return nil
}

type scanner struct {
	data   []byte
	at     int
	values int
	limits Limits
}

// value scans one value. where is its key, for errors.
func (s *scanner) value(shape Shape, where string, depth int) error {
	if s.values++; s.values > s.limits.Values {
		return fmt.Errorf("more than %d values: %w", s.limits.Values, errdefs.ErrOutOfRange)
	}
	switch s.next() {
	case '{', '[':
		if depth >= s.limits.Depth {
			return fmt.Errorf("more than %d arrays and objects within each other: %w", s.limits.Depth, errdefs.ErrOutOfRange)
		}
		return s.members(shape, where, depth+1)
	case '"':
		_, err := s.text()
		return err
	case 0:
		return s.torn()
	}
	return s.literal()
}

// members scans an array or an object.
func (s *scanner) members(shape Shape, where string, depth int) error {
	object := s.data[s.at] == '{'
	s.at++
	var seen []string
	for count := 0; ; {
		switch s.next() {
		case '}', ']':
			s.at++
			return nil
		case ',':
			s.at++
			continue
		case 0:
			return s.torn()
		}
		if count++; shape.Max > 0 && count > shape.Max {
			return fmt.Errorf("%s has more than %d entries: %w", where, shape.Max, errdefs.ErrOutOfRange)
		}
		member, name := Shape{}, where
		if object {
			var err error
			if name, member, err = s.key(shape); err != nil {
				return err
			}
			if shape.Distinct && name != "" && slices.Contains(seen, name) {
				return fmt.Errorf("%s has the key %q twice: %w", where, name, errdefs.ErrInvalidArgument)
			}
			if shape.Distinct && name != "" {
				seen = append(seen, name)
			}
		} else if shape.Elements != nil {
			member = *shape.Elements
		}
		if err := s.value(member, name, depth); err != nil {
			return err
		}
	}
}

// key scans a member's key and the colon after it. It returns the member's name and shape in
// shape.Members; "" and the zero Shape for an unknown member.
func (s *scanner) key(shape Shape) (string, Shape, error) {
	if s.next() != '"' {
		return "", Shape{}, fmt.Errorf("key is not a string at offset %d: %w", s.at, errdefs.ErrInvalidArgument)
	}
	text, err := s.text()
	if err != nil {
		return "", Shape{}, err
	}
	if s.next() != ':' {
		return "", Shape{}, fmt.Errorf("key without a value at offset %d: %w", s.at, errdefs.ErrInvalidArgument)
	}
	s.at++
	for name, member := range shape.Members {
		if names(text, name) {
			return name, member, nil
		}
	}
	return "", Shape{}, nil
}

// names reports whether encoding/json decodes a quoted key into the field of that name.
func names(quoted []byte, name string) bool {
	// The longest encoding of a character of a name is a surrogate escape of six bytes.
	if len(quoted) > 6*len(name)+2 {
		return false
	}
	if bytes.IndexByte(quoted, '\\') < 0 {
		return strings.EqualFold(string(quoted[1:len(quoted)-1]), name)
	}
	var key string
	return json.Unmarshal(quoted, &key) == nil && strings.EqualFold(key, name)
}

// text scans a string and returns it with its quotes.
func (s *scanner) text() ([]byte, error) {
	from := s.at
	for s.at++; ; {
		i := bytes.IndexAny(s.data[s.at:], `"\`)
		if i < 0 {
			return nil, s.torn()
		}
		s.at += i + 1
		if s.data[s.at-1] == '"' {
			return s.data[from:s.at], nil
		}
		if s.at++; s.at > len(s.data) {
			return nil, s.torn()
		}
	}
}

// literal scans a number, true, false, null, or any other unstructured text.
func (s *scanner) literal() error {
	from := s.at
	for s.at < len(s.data) && !strings.ContainsRune(" \t\r\n,:\"{}[]", rune(s.data[s.at])) {
		s.at++
	}
	if s.at == from {
		return fmt.Errorf("no value at offset %d: %w", s.at, errdefs.ErrInvalidArgument)
	}
	return nil
}

// next skips white space and returns the next byte; 0 at the end.
func (s *scanner) next() byte {
	for s.at < len(s.data) {
		switch c := s.data[s.at]; c {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) torn() error {
	return fmt.Errorf("unexpected end at offset %d: %w", s.at, errdefs.ErrInvalidArgument)
}

package registry

import (
	"net/http"
	"strings"
)

const (
	schemeBearer = "bearer"
	schemeBasic  = "basic"
)

// maxChallenges is the number of challenges of one answer that are used. Servers send one to three.
const maxChallenges = 16

// challenge is a way to authenticate that a server offers, RFC 9110 section 11.6.1.
type challenge struct {
	scheme string            // in lower case
	params map[string]string // keys in lower case; the first of equal keys counts
}

// challengesOf returns all challenges of an answer. One header line may have several.
func challengesOf(h http.Header) []challenge {
	var list []challenge
	for _, line := range h.Values("WWW-Authenticate") {
		list = append(list, parseChallenges(line)...)
		if len(list) >= maxChallenges {
			return list[:maxChallenges]
		}
	}
	return list
}

// parseChallenges parses one header line. It accepts missing commas between parameters, which the
// grammar does not permit, and skips what it cannot parse.
func parseChallenges(line string) []challenge {
	var list []challenge
	s := challengeScanner{rest: line}
	for len(list) <= maxChallenges {
		s.skip(" \t,")
		if s.rest == "" {
			break
		}
		word := s.take(isTokenByte)
		switch {
		case word == "":
			s.skipToComma()
		case s.equals():
			value := s.value()
			if len(list) > 0 {
				list[len(list)-1].set(word, value)
			}
		default:
			list = append(list, challenge{scheme: strings.ToLower(word)})
			s.skipToken68()
		}
	}
	return list
}

func (c *challenge) set(key, value string) {
	key = strings.ToLower(key)
	if _, ok := c.params[key]; ok {
		return
	}
	if c.params == nil {
		c.params = make(map[string]string)
	}
	c.params[key] = value
}

// challengeScanner reads a header line from its front.
type challengeScanner struct{ rest string }

func (s *challengeScanner) skip(cutset string) { s.rest = strings.TrimLeft(s.rest, cutset) }

func (s *challengeScanner) take(accept func(byte) bool) string {
	n := 0
	for n < len(s.rest) && accept(s.rest[n]) {
		n++
	}
	taken := s.rest[:n]
	s.rest = s.rest[n:]
	return taken
}

// equals consumes an equals sign with the white space around it, if that is next.
func (s *challengeScanner) equals() bool {
	rest, ok := strings.CutPrefix(strings.TrimLeft(s.rest, " \t"), "=")
	if ok {
		s.rest = strings.TrimLeft(rest, " \t")
	}
	return ok
}

// value reads a token or a quoted string. A string without its closing quote ends with the line.
func (s *challengeScanner) value() string {
	if !strings.HasPrefix(s.rest, `"`) {
		return s.take(func(c byte) bool { return c != ',' && c != ' ' && c != '\t' })
	}
	var b strings.Builder
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			s.rest = s.rest[i+1:]
			return b.String()
		case c == '\\' && i+1 < len(s.rest):
			i++
			b.WriteByte(s.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	s.rest = ""
	return b.String()
}

// skipToken68 skips the data that some schemes, such as Negotiate, have instead of parameters.
func (s *challengeScanner) skipToken68() {
	t := challengeScanner{rest: strings.TrimLeft(s.rest, " \t")}
	if t.take(isToken68Byte) == "" {
		return
	}
	t.skip("=")
	t.skip(" \t")
	if t.rest == "" || t.rest[0] == ',' {
		s.rest = t.rest
	}
}

func (s *challengeScanner) skipToComma() {
	_, s.rest, _ = strings.Cut(s.rest, ",")
}

func isLetterOrDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isTokenByte(c byte) bool {
	return isLetterOrDigit(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func isToken68Byte(c byte) bool {
	return isLetterOrDigit(c) || strings.IndexByte("-._~+/", c) >= 0
}

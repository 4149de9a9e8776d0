package packaging

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/micarun/mica/config"
)

// The commented default file is the only description of the settings. This command generates the
// reference in docs and the manual page from it:
//
//	go test ./packaging -run Reference -update
var update = flag.Bool("update", false, "generate the references from the default configuration")

// setting is one key of the reference.
type setting struct{ name, value string }

// entry is a group of keys with a common comment.
type entry struct {
	text string
	keys []setting
}

// table is a table of the default file; the first one has no name.
type table struct {
	name, text string
	optional   bool // the whole table is commented out
	entries    []entry
}

// reference is the parsed default file.
type reference struct {
	intro  []string // paragraphs
	tables []*table
}

var (
	tableLine = regexp.MustCompile(`^(#?)\[([a-z_.]+)\]$`)
	keyLine   = regexp.MustCompile(`^#?([a-z_0-9]+) = (.*)$`)
)

func parseReference(t *testing.T, text string) reference {
	t.Helper()
	head, body, ok := strings.Cut(text, "\n\n")
	if !ok {
		t.Fatal("the default file has no introduction")
	}
	intro := strings.ReplaceAll("\n"+head, "\n# ", "\n")
	r := reference{intro: strings.Split(strings.TrimSpace(strings.ReplaceAll(intro, "\n#\n", "\n\n")), "\n\n"), tables: []*table{{}}}
	var comment []string
	grouped := false // the previous line was a key of the same group
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		last := r.tables[len(r.tables)-1]
		if m := tableLine.FindStringSubmatch(line); m != nil {
			r.tables = append(r.tables, &table{name: m[2], optional: m[1] != "", text: strings.Join(comment, " ")})
			comment, grouped = nil, false
		} else if m := keyLine.FindStringSubmatch(line); m != nil {
			if !grouped {
				last.entries = append(last.entries, entry{text: strings.Join(comment, " ")})
			}
			group := &last.entries[len(last.entries)-1]
			group.keys = append(group.keys, setting{m[1], m[2]})
			comment, grouped = nil, true
		} else if words, ok := strings.CutPrefix(line, "# "); ok {
			comment, grouped = append(comment, words), false
		} else if line == "" {
			comment, grouped = nil, false
		} else {
			t.Fatalf("cannot parse this line of the default file: %q", line)
		}
	}
	return r
}

// keys lists the keys in the form of config.Keys.
func (r reference) keys() map[string]bool {
	keys := map[string]bool{}
	for _, t := range r.tables {
		prefix := t.name
		if strings.HasPrefix(prefix, "runtimes.") {
			prefix = "runtimes.*"
		}
		for _, e := range t.entries {
			for _, k := range e.keys {
				keys[strings.TrimPrefix(prefix+"."+k.name, ".")] = true
			}
		}
	}
	return keys
}

// markdown returns the content of docs/configuration.md.
func (r reference) markdown() string {
	var b strings.Builder
	b.WriteString("# Configuration\n\n")
	b.WriteString("<!-- Made from config/default.toml by: go test ./packaging -run Reference -update -->\n\n")
	for _, p := range r.intro {
		b.WriteString(strings.ReplaceAll(p, "*.toml", `\*.toml`) + "\n\n")
	}
	for _, t := range r.tables {
		name := "Outside of tables"
		if t.name != "" {
			name = "[" + t.name + "]"
		}
		fmt.Fprintf(&b, "## %s\n\n", name)
		if t.text != "" {
			b.WriteString(t.text + "\n\n")
		}
		if t.optional {
			b.WriteString("Without this table in a file there is none.\n\n")
		}
		b.WriteString("| key | default | |\n|---|---|---|\n")
		for _, e := range t.entries {
			for i, k := range e.keys {
				text := e.text
				if i > 0 {
					text = "see above"
				}
				fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", k.name, k.value, strings.ReplaceAll(text, "|", `\|`))
			}
		}
		b.WriteString("\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// roff escapes text for a manual page, with one sentence per line.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`).Replace(text)
	var b strings.Builder
	width := 0
	for word := range strings.FieldsSeq(text) {
		if width > 0 && width+1+len(word) > 76 {
			b.WriteString("\n")
			width = 0
		}
		if width > 0 {
			b.WriteString(" ")
			width++
		} else if strings.HasPrefix(word, ".") || strings.HasPrefix(word, "'") {
			b.WriteString(`\&`)
		}
		b.WriteString(word)
		width += len(word)
		if strings.HasSuffix(word, ".") || strings.HasSuffix(word, ":") {
			b.WriteString("\n")
			width = 0
		}
	}
	return strings.TrimSuffix(b.String(), "\n") + "\n"
}

// manual returns the page mica.toml(5). date is unchanged, so that the page changes only with its
// content.
func (r reference) manual(date string) string {
	var b strings.Builder
	b.WriteString(".\\\" Made from config/default.toml by: go test ./packaging -run Reference -update\n")
	fmt.Fprintf(&b, ".TH MICA.TOML 5 %q Mica \"File formats\"\n", date)
	b.WriteString(".SH NAME\nmica.toml \\- configuration of micad, the Mica node runtime\n")
	b.WriteString(".SH SYNOPSIS\n.I /etc/mica/config.toml\n.br\n.I /etc/mica/conf.d/*.toml\n.SH DESCRIPTION\n")
	for i, p := range r.intro {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		b.WriteString(roff(p))
	}
	for i, t := range r.tables {
		if i == 0 {
			b.WriteString(".SH KEYS OUTSIDE OF TABLES\n")
		} else {
			fmt.Fprintf(&b, ".SH [%s]\n", roff(t.name)[:len(roff(t.name))-1])
		}
		if t.text != "" {
			b.WriteString(roff(t.text))
		}
		for _, e := range t.entries {
			for i, k := range e.keys {
				tag := ".TP\n"
				if i > 0 {
					tag = ".TQ\n"
				}
				fmt.Fprintf(&b, "%s.BR %s \" = %s\"\n", tag, k.name, strings.NewReplacer(`\`, `\e`, "-", `\-`, `"`, `\(dq`).Replace(k.value))
			}
			b.WriteString(roff(e.text))
		}
	}
	b.WriteString(".SH SEE ALSO\n.BR micad (8),\n.BR mica (1)\n")
	return b.String()
}

func TestReference(t *testing.T) {
	r := parseReference(t, string(config.DefaultFile()))
	page := filepath.Join("man", "mica.toml.5")
	date := "2026-11-21"
	if m := regexp.MustCompile(`(?m)^\.TH \S+ 5 "([^"]*)"`).FindStringSubmatch(mayRead(page)); m != nil {
		date = m[1]
	}
	for path, want := range map[string]string{
		filepath.Join("..", "docs", "configuration.md"): r.markdown(),
		page: r.manual(date),
	} {
		if mayRead(path) == want {
			continue
		}
		if !*update {
			t.Errorf("%s differs from config/default.toml: run go test ./packaging -run Reference -update", path)
		} else if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// The reference describes every key and nothing else.
func TestReferenceIsComplete(t *testing.T) {
	r := parseReference(t, string(config.DefaultFile()))
	found := r.keys()
	for _, key := range config.Keys() {
		if !found[key] {
			t.Errorf("the reference lacks %s", key)
		}
		delete(found, key)
	}
	for key := range found {
		t.Errorf("the reference has %s, which is not a key", key)
	}
	for _, table := range r.tables {
		for _, e := range table.entries {
			if e.text == "" && table.name != "runtimes.runc" {
				t.Errorf("[%s] %s is not explained", table.name, e.keys[0].name)
			}
		}
	}
}

func mayRead(path string) string {
	data, _ := os.ReadFile(path)
	return string(data)
}

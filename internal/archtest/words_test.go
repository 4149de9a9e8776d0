package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// avoided matches words and phrases that an engineer has to read twice, in comments, messages,
// names and documents. CONTRIBUTING.md says what to write instead.
var avoided = regexp.MustCompile(`(?i)\b(` + strings.ReplaceAll(strings.Join([]string{
	"told", "untold", "heard", "borne", "anew", "afresh", "dear", "strays?", "lest", "whoever",
	"of ours", "as good as", "what of it", "goes although", "that of the",
}, "|"), " ", `\s+`) + `)\b`)

// allowed lists exact texts that may contain an avoided word, because other software or files on
// disk depend on them.
func allowed() []string {
	return []string{
		`"Untold":true`, `"Untold":false`, `json:"Untold,omitempty"`, // a field of containers' state files
	}
}

func TestAvoidedWords(t *testing.T) {
	root := filepath.Join("..", "..")
	checked := map[string]int{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || name == "bin") {
			return fs.SkipDir
		}
		ext := filepath.Ext(name)
		if d.IsDir() || ext != ".go" && ext != ".md" || name == "internal/archtest/words_test.go" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		checked[ext]++
		found, err := avoidedIn(name, string(text))
		for _, f := range found {
			t.Error(f)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if checked[".go"] < 300 || checked[".md"] < 10 {
		t.Errorf("checked only %v", checked)
	}
}

// avoidedIn returns the avoided words in a Go or Markdown file, each with its place.
func avoidedIn(name, text string) ([]string, error) {
	if filepath.Ext(name) == ".md" {
		return avoidedInText(name, 1, text), nil
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, text, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, group := range f.Comments {
		found = append(found, avoidedInText(name, fset.Position(group.Pos()).Line, group.Text())...)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			if n.Kind == token.STRING {
				found = append(found, avoidedInText(name, fset.Position(n.Pos()).Line, n.Value)...)
			}
		case *ast.Ident:
			found = append(found, avoidedInText(name, fset.Position(n.Pos()).Line, words(n.Name))...)
		}
		return true
	})
	slices.Sort(found)
	return found, nil
}

func avoidedInText(name string, line int, text string) []string {
	for _, a := range allowed() {
		text = strings.ReplaceAll(text, a, "")
	}
	var found []string
	for _, at := range avoided.FindAllStringIndex(text, -1) {
		place := line + strings.Count(text[:at[0]], "\n")
		found = append(found, fmt.Sprintf("%s:%d: avoid %q", name, place, text[at[0]:at[1]]))
	}
	return found
}

// words separates the words of an identifier by spaces: "strayCgroup_v2" becomes "stray Cgroup v2".
func words(identifier string) string {
	var b strings.Builder
	var last rune
	for _, r := range identifier {
		switch {
		case r == '_':
			r = ' '
		case unicode.IsUpper(r) && unicode.IsLower(last):
			b.WriteByte(' ')
		}
		b.WriteRune(r)
		last = r
	}
	return b.String()
}

func TestAvoidedIn(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"a.md", "No client\nis told, so\nthere.\n", []string{`a.md:2: avoid "told"`}},
		{"a.md", "A stranger retold the story of yours.\n", nil},
		{"a.go", "package a\n\n// A thread of\n// ours.\nvar x int\n", []string{"a.go:3: avoid \"of\\nours\""}},
		{"a.go", "package a\n\nvar x = \"Stray lock\"\n", []string{`a.go:3: avoid "Stray"`}},
		{"a.go", "package a\n\nfunc isTold(whoever_calls int) {}\n", []string{`a.go:3: avoid "Told"`, `a.go:3: avoid "whoever"`}},
		{"a.go", "package a\n\nvar destroyed, golden, x = 1, 2, `{\"Untold\":true}`\n", nil},
	} {
		got, err := avoidedIn(c.name, c.text)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, %v, want %q", c.text, got, err, c.want)
		}
	}
}

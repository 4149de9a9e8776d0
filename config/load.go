package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Load reads the file at path and the files conf.d/*.toml beside it over the defaults, and
// validates the result. The file at path must exist unless path is DefaultPath; conf.d is optional.
// The error lists every problem of the files, or, if they can be read, every invalid setting.
func Load(path string) (Config, error) {
	names, err := files(path)
	if err != nil {
		return Config{}, fmt.Errorf("load configuration: %w", err)
	}
	c := Default()
	view := newView(c)
	var problems []error
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return Config{}, fmt.Errorf("load configuration: %w", err)
		}
		problems = append(problems, decode(view, name, data)...)
	}
	if len(problems) > 0 {
		return Config{}, errors.Join(problems...)
	}
	transfer(reflect.ValueOf(&c).Elem(), view.Elem())
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("invalid configuration %s:\n%w", strings.Join(names, ", "), err)
	}
	return c, nil
}

// Dump returns the configuration as one TOML file, from which Load reads the same configuration.
func (c Config) Dump() ([]byte, error) {
	var b bytes.Buffer
	enc := toml.NewEncoder(&b)
	if err := enc.Encode(newView(c).Interface()); err != nil {
		return nil, fmt.Errorf("dump configuration: %w", err)
	}
	return b.Bytes(), nil
}

// Settings returns the content of Dump as a tree of maps, for other output formats.
func (c Config) Settings() (map[string]any, error) {
	text, err := c.Dump()
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("read dumped configuration: %w", err)
	}
	return tree, nil
}

// newView returns a pointer to a mirror with c's values.
func newView(c Config) reflect.Value {
	mirror, _ := mirrorOf(reflect.TypeOf(c), "")
	view := reflect.New(mirror)
	transfer(view.Elem(), reflect.ValueOf(c))
	return view
}

// files returns the files that Load reads, in order.
func files(path string) ([]string, error) {
	var names []string
	switch _, err := os.Stat(path); {
	case err == nil:
		names = append(names, path)
	case path != DefaultPath || !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	// Glob sorts by name; its only error is a malformed pattern.
	more, err := filepath.Glob(filepath.Join(filepath.Dir(path), "conf.d", "*.toml"))
	if err != nil {
		return nil, err
	}
	return append(names, more...), nil
}

// decode reads data over view. Every problem names its position in the file.
func decode(view reflect.Value, name string, data []byte) []error {
	err := unmarshal(view, data)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		var problems []error
		for _, e := range unknown.Errors {
			row, col := e.Position()
			problems = append(problems, fmt.Errorf("%s:%d:%d: unknown key %s", name, row, col, strings.Join(e.Key(), ".")))
		}
		return problems
	case errors.As(err, &wrong):
		row, col := wrong.Position()
		text := explain(wrong.Error())
		if key := strings.Join(wrong.Key(), "."); key != "" {
			text = key + ": " + text
		}
		return []error{fmt.Errorf("%s:%d:%d: %s", name, row, col, text)}
	}
	return []error{fmt.Errorf("%s:%d: %w", name, lineOf(view, data, err), err)}
}

func unmarshal(view reflect.Value, data []byte) error {
	return toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(view.Interface())
}

// lineOf finds the line of an error without a position, such as those of encoding.TextUnmarshaler
// for values that are not strings. It returns the first line up to which the file yields the same
// error.
func lineOf(view reflect.Value, data []byte, want error) int {
	scratch := reflect.New(view.Type().Elem())
	lines := bytes.SplitAfter(data, []byte("\n"))
	for n := range lines {
		if err := unmarshal(scratch, bytes.Join(lines[:n+1], nil)); err != nil && err.Error() == want.Error() {
			return n + 1
		}
	}
	return len(lines)
}

// explain rewords go-toml's errors for values of the wrong type, which contain full Go types.
func explain(text string) string {
	text = strings.TrimPrefix(text, "toml: ")
	kind, ok := strings.CutPrefix(text, "cannot decode TOML ")
	if !ok {
		return text
	}
	kind, _, _ = strings.Cut(kind, " ")
	return fmt.Sprintf("wrong type: got %s, want %s", kind, text[strings.LastIndexByte(text, ' ')+1:])
}

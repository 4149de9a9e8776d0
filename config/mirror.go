package config

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
)

// A mirror is the type of a Config for TOML: the same tree, with a key on every field and durations
// such as "30s", and without the fields that users cannot set. It is derived by reflection. So the
// packages' Options stay plain Go, and a new field becomes a key.

// duration is time.Duration in a mirror. It is a struct so that a number without a unit does not
// decode into it.
type duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a duration such as \"30s\" or \"1h30m\"", text)
	case v < 0:
		return fmt.Errorf("%q is a negative duration", text)
	}
	d.Duration = v
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// hidden reports whether users cannot set a key, because its value follows from other keys (see
// Config.Resolved) or from the executable.
func hidden(key string) bool {
	switch key {
	case "images.root", "network.cache_dir", "network.default.data_dir",
		"pods.data_dir", "pods.state_dir", "pods.version", "keeper.dir",
		"runtimes.*.name", "runtimes.*.root":
		return true
	}
	return false
}

// mirrorOf returns the mirror of type t at key. ok is false for types that TOML has no value for:
// functions, interfaces, channels.
func mirrorOf(t reflect.Type, key string) (mirror reflect.Type, ok bool) {
	if t == reflect.TypeFor[time.Duration]() {
		return reflect.TypeFor[duration](), true
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return t, true
	}
	switch t.Kind() {
	case reflect.Func, reflect.Interface, reflect.Chan, reflect.UnsafePointer:
		return nil, false
	case reflect.Struct:
		return mirrorStruct(t, key), true
	case reflect.Pointer, reflect.Slice, reflect.Map:
		below := key
		if t.Kind() == reflect.Map {
			below = join(key, "*")
		}
		elem, ok := mirrorOf(t.Elem(), below)
		if !ok {
			return nil, false
		}
		return compose(t, elem), true
	default:
		return t, true
	}
}

func compose(t, elem reflect.Type) reflect.Type {
	switch t.Kind() {
	case reflect.Pointer:
		return reflect.PointerTo(elem)
	case reflect.Slice:
		return reflect.SliceOf(elem)
	default:
		return reflect.MapOf(t.Key(), elem)
	}
}

func mirrorStruct(t reflect.Type, key string) reflect.Type {
	var fields []reflect.StructField
	for i := range t.NumField() {
		f := t.Field(i)
		name := keyOf(f)
		if name == "" || hidden(join(key, name)) {
			continue
		}
		if mirror, ok := mirrorOf(f.Type, join(key, name)); ok {
			fields = append(fields, reflect.StructField{Name: f.Name, Type: mirror, Tag: tagOf(t, name)})
		}
	}
	return reflect.StructOf(fields)
}

// tagOf returns the tag of a mirror's field. Zero values in the Options of other packages mean the
// default and are omitted; zero values in this package's structs are written.
func tagOf(owner reflect.Type, key string) reflect.StructTag {
	if owner.PkgPath() != reflect.TypeFor[Config]().PkgPath() {
		key += ",omitempty"
	}
	return reflect.StructTag(`toml:"` + key + `"`)
}

// keyOf returns the key of a field: its toml tag, or its name in snake case. It returns "" for a
// field without a key.
func keyOf(f reflect.StructField) string {
	if !f.IsExported() {
		return ""
	}
	name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
	switch name {
	case "-":
		return ""
	case "":
		return snake(f.Name)
	}
	return name
}

// snake turns TLSCertPath into tls_cert_path.
func snake(name string) string {
	runes := []rune(name)
	var b strings.Builder
	for i, r := range runes {
		afterLower := i > 0 && !unicode.IsUpper(runes[i-1])
		startsWord := i > 0 && i+1 < len(runes) && unicode.IsLower(runes[i+1])
		if unicode.IsUpper(r) && (afterLower || startsWord) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// transfer copies src into dst, one of which is a mirror of the other. Fields that the mirror lacks
// keep their values.
func transfer(dst, src reflect.Value) {
	switch {
	case src.Type() == dst.Type():
		dst.Set(src)
	case src.Type() == reflect.TypeFor[duration]():
		dst.Set(src.Field(0))
	case dst.Type() == reflect.TypeFor[duration]():
		dst.Field(0).Set(src)
	case src.Kind() == reflect.Struct:
		transferStruct(dst, src)
	case src.Kind() == reflect.Pointer:
		if src.IsNil() {
			dst.SetZero()
			return
		}
		dst.Set(reflect.New(dst.Type().Elem()))
		transfer(dst.Elem(), src.Elem())
	case src.Kind() == reflect.Slice:
		if src.IsNil() {
			dst.SetZero()
			return
		}
		dst.Set(reflect.MakeSlice(dst.Type(), src.Len(), src.Len()))
		for i := range src.Len() {
			transfer(dst.Index(i), src.Index(i))
		}
	case src.Kind() == reflect.Map:
		transferMap(dst, src)
	}
}

func transferStruct(dst, src reflect.Value) {
	for i := range src.NumField() {
		field := src.Type().Field(i)
		if to := dst.FieldByName(field.Name); field.IsExported() && to.IsValid() {
			transfer(to, src.Field(i))
		}
	}
}

func transferMap(dst, src reflect.Value) {
	if src.IsNil() {
		dst.SetZero()
		return
	}
	m := reflect.MakeMapWithSize(dst.Type(), src.Len())
	for it := src.MapRange(); it.Next(); {
		v := reflect.New(dst.Type().Elem()).Elem()
		transfer(v, it.Value())
		m.SetMapIndex(it.Key(), v)
	}
	dst.Set(m)
}

// Changes returns the keys whose values differ, in the order of the fields. It omits values that
// follow from other keys. A table that only one of the two has is reported as a whole.
func Changes(a, b Config) []string {
	return differing(newView(a).Elem(), newView(b).Elem(), "")
}

func differing(a, b reflect.Value, key string) []string {
	switch {
	case reflect.DeepEqual(a.Interface(), b.Interface()):
		return nil
	case reflect.PointerTo(a.Type()).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
	case a.Kind() == reflect.Struct:
		var keys []string
		for i := range a.NumField() {
			keys = append(keys, differing(a.Field(i), b.Field(i), join(key, keyOf(a.Type().Field(i))))...)
		}
		return keys
	case a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil():
		return differing(a.Elem(), b.Elem(), key)
	case a.Kind() == reflect.Map:
		return differingEntries(a, b, key)
	}
	return []string{key}
}

func differingEntries(a, b reflect.Value, key string) []string {
	names := map[string]bool{}
	for _, m := range []reflect.Value{a, b} {
		for _, name := range m.MapKeys() {
			names[name.String()] = true
		}
	}
	var keys []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		inA, inB := a.MapIndex(reflect.ValueOf(name)), b.MapIndex(reflect.ValueOf(name))
		if inA.IsValid() && inB.IsValid() {
			keys = append(keys, differing(inA, inB, join(key, name))...)
		} else {
			keys = append(keys, join(key, name))
		}
	}
	return keys
}

// Keys returns every key; "*" stands for any name in a table of tables.
func Keys() []string { return keysOf(newView(Default()).Type(), "") }

// keysOf returns the keys below a mirror type; "*" stands for any name in a map.
func keysOf(t reflect.Type, key string) []string {
	switch t.Kind() {
	case reflect.Pointer:
		return keysOf(t.Elem(), key)
	case reflect.Map:
		return keysOf(t.Elem(), join(key, "*"))
	case reflect.Struct:
		if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
			return []string{key}
		}
		var keys []string
		for i := range t.NumField() {
			f := t.Field(i)
			keys = append(keys, keysOf(f.Type, join(key, keyOf(f)))...)
		}
		return keys
	default:
		return []string{key}
	}
}

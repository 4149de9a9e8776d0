package imageconfig

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// repeated returns text n times, separated by commas.
func repeated(text string, n int) string {
	return strings.TrimSuffix(strings.Repeat(text+",", n), ",")
}

// numbered returns n members of an object with distinct keys.
func numbered(n int, value string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"%d":%s,`, i, value)
	}
	return strings.TrimSuffix(b.String(), ",")
}

// allocated returns the number of bytes that f allocates, including those freed since.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A configuration that grows when it is decoded is refused before that, and one that is accepted
// costs a bounded multiple of its size.
func TestLimits(t *testing.T) {
	rootfs := `"rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]}`
	for name, c := range map[string]struct{ data, wantErr string }{
		"history of a large image":  {`{` + rootfs + `,"history":[` + repeated(`{"created":"2024-01-02T03:04:05Z","created_by":"RUN x"}`, 1000) + `]}`, ""},
		"ports of a media server":   {`{` + rootfs + `,"config":{"ExposedPorts":{` + numbered(65536, "{}") + `}}}`, ""},
		"history of empty objects":  {`{` + rootfs + `,"history":[` + repeated(`{}`, 600_000) + `]}`, "history has more than"},
		"history in other case":     {`{` + rootfs + `,"History":[` + repeated(`{}`, 600_000) + `]}`, "history has more than"},
		"history twice":             {`{` + rootfs + `,"history":[{}],"History":[{},{}]}`, "twice"},
		"diff IDs":                  {`{"rootfs":{"type":"layers","diff_ids":[` + repeated(`""`, 20_000) + `]}}`, "diff_ids has more than"},
		"two root file systems":     {`{` + rootfs + `,` + strings.Replace(rootfs, "rootfs", "RootFS", 1) + `}`, "twice"},
		"environment":               {`{` + rootfs + `,"config":{"Env":[` + repeated(`""`, 60_000) + `]}}`, "Env has more than"},
		"environment, two configs":  {`{` + rootfs + `,"config":{"Env":[]},"Config":{"Env":[]}}`, "twice"},
		"labels":                    {`{` + rootfs + `,"config":{"Labels":{` + numbered(60_000, `""`) + `}}}`, "Labels has more than"},
		"volumes":                   {`{` + rootfs + `,"config":{"Volumes":{` + numbered(60_000, `{}`) + `}}}`, "Volumes has more than"},
		"ports":                     {`{` + rootfs + `,"config":{"ExposedPorts":{` + numbered(140_000, `{}`) + `}}}`, "ExposedPorts has more than"},
		"commands of other builds":  {`{` + rootfs + `,"config":{"OnBuild":[` + repeated(`""`, 60_000) + `]}}`, "OnBuild has more than"},
		"command":                   {`{` + rootfs + `,"config":{"Cmd":[` + repeated(`""`, 60_000) + `]}}`, "Cmd has more than"},
		"entry point":               {`{` + rootfs + `,"config":{"Entrypoint":[` + repeated(`""`, 60_000) + `]}}`, "Entrypoint has more than"},
		"shell":                     {`{` + rootfs + `,"config":{"Shell":[` + repeated(`""`, 60_000) + `]}}`, "Shell has more than"},
		"features of the system":    {`{` + rootfs + `,"os.features":[` + repeated(`""`, 60_000) + `]}`, "os.features has more than"},
		"user":                      {`{` + rootfs + `,"config":{"User":"` + strings.Repeat("u", 10_000) + `"}}`, "user of"},
		"values of unknown members": {`{` + rootfs + `,"x":[` + repeated(`0`, 600_000) + `]}`, "more than"},
		"nesting":                   {`{` + rootfs + `,"x":` + strings.Repeat("[", 1<<20), "within each other"},
		"size":                      {`{` + rootfs + `,"x":"` + strings.Repeat("x", 2<<20) + `"}`, "larger than the limit"},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			data := []byte(c.data)
			cost := allocated(func() { _, err = Parse(data) })
			switch {
			case c.wantErr == "" && err != nil:
				t.Error(err)
			case c.wantErr != "" && (err == nil || !strings.Contains(err.Error(), c.wantErr)):
				t.Errorf("error %v, want %q", err, c.wantErr)
			}
			if err == nil && cost > 24<<20 || err != nil && cost > 64<<10 {
				t.Errorf("%d bytes cost %d bytes of memory", len(data), cost)
			}
		})
	}
}

// The summary agrees with the configuration.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]},"config":{"User":"1:2"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			return
		}
		if s, err := ParseSummary(data); err != nil || s.Config.User != c.Config.User || !slices.Equal(s.RootFS.DiffIDs, c.RootFS.DiffIDs) {
			t.Fatalf("the summary differs: %+v, %v", s, err)
		}
		if ids := DiffIDs(data); !slices.Equal(ids, c.RootFS.DiffIDs) {
			t.Fatalf("the layers differ: %v", ids)
		}
	})
}

// A configuration of nothing but nesting costs little memory when its layers are looked for.
func TestDiffIDsOfNestedConfiguration(t *testing.T) {
	data := []byte(`{"x":` + strings.Repeat("[", MaxForeignSize/2))
	cost := allocated(func() {
		if ids := DiffIDs(data); len(ids) > 0 {
			t.Errorf("diff IDs %v", ids)
		}
	})
	if cost > 64<<10 {
		t.Errorf("%d bytes of memory", cost)
	}
}

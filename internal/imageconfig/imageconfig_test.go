package imageconfig

import (
	"slices"
	"strings"
	"testing"

	"github.com/micarun/mica/internal/testcost"
)

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// A configuration that grows when it is decoded is refused before that, and one that is accepted
// costs a bounded multiple of its size.
func TestLimits(t *testing.T) {
	rootfs := `"rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]}`
	for name, c := range map[string]struct{ data, wantErr string }{
		"history of a large image":  {`{` + rootfs + `,"history":[` + testcost.Repeated(`{"created":"2024-01-02T03:04:05Z","created_by":"RUN x"}`, 1000) + `]}`, ""},
		"ports of a media server":   {`{` + rootfs + `,"config":{"ExposedPorts":{` + testcost.Numbered(65536, "{}") + `}}}`, ""},
		"history of empty objects":  {`{` + rootfs + `,"history":[` + testcost.Repeated(`{}`, 600_000) + `]}`, "history has more than"},
		"history in other case":     {`{` + rootfs + `,"History":[` + testcost.Repeated(`{}`, 600_000) + `]}`, "history has more than"},
		"history twice":             {`{` + rootfs + `,"history":[{}],"History":[{},{}]}`, "twice"},
		"diff IDs":                  {`{"rootfs":{"type":"layers","diff_ids":[` + testcost.Repeated(`""`, 20_000) + `]}}`, "diff_ids has more than"},
		"two root file systems":     {`{` + rootfs + `,` + strings.Replace(rootfs, "rootfs", "RootFS", 1) + `}`, "twice"},
		"environment":               {`{` + rootfs + `,"config":{"Env":[` + testcost.Repeated(`""`, 60_000) + `]}}`, "Env has more than"},
		"environment, two configs":  {`{` + rootfs + `,"config":{"Env":[]},"Config":{"Env":[]}}`, "twice"},
		"labels":                    {`{` + rootfs + `,"config":{"Labels":{` + testcost.Numbered(60_000, `""`) + `}}}`, "Labels has more than"},
		"volumes":                   {`{` + rootfs + `,"config":{"Volumes":{` + testcost.Numbered(60_000, `{}`) + `}}}`, "Volumes has more than"},
		"ports":                     {`{` + rootfs + `,"config":{"ExposedPorts":{` + testcost.Numbered(140_000, `{}`) + `}}}`, "ExposedPorts has more than"},
		"commands of other builds":  {`{` + rootfs + `,"config":{"OnBuild":[` + testcost.Repeated(`""`, 60_000) + `]}}`, "OnBuild has more than"},
		"command":                   {`{` + rootfs + `,"config":{"Cmd":[` + testcost.Repeated(`""`, 60_000) + `]}}`, "Cmd has more than"},
		"entry point":               {`{` + rootfs + `,"config":{"Entrypoint":[` + testcost.Repeated(`""`, 60_000) + `]}}`, "Entrypoint has more than"},
		"shell":                     {`{` + rootfs + `,"config":{"Shell":[` + testcost.Repeated(`""`, 60_000) + `]}}`, "Shell has more than"},
		"features of the system":    {`{` + rootfs + `,"os.features":[` + testcost.Repeated(`""`, 60_000) + `]}`, "os.features has more than"},
		"user":                      {`{` + rootfs + `,"config":{"User":"` + strings.Repeat("u", 10_000) + `"}}`, "user of"},
		"values of unknown members": {`{` + rootfs + `,"x":[` + testcost.Repeated(`0`, 600_000) + `]}`, "more than"},
		"nesting":                   {`{` + rootfs + `,"x":` + strings.Repeat("[", 1<<20), "within each other"},
		"size":                      {`{` + rootfs + `,"x":"` + strings.Repeat("x", 2<<20) + `"}`, "larger than the limit"},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			data := []byte(c.data)
			cost := testcost.Allocated(func() { _, err = Parse(data) })
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
	cost := testcost.Allocated(func() {
		if ids := DiffIDs(data); len(ids) > 0 {
			t.Errorf("diff IDs %v", ids)
		}
	})
	if cost > 64<<10 {
		t.Errorf("%d bytes of memory", cost)
	}
}

package registry

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseChallenges(t *testing.T) {
	type params = map[string]string
	bearer := challenge{schemeBearer, params{"realm": "https://auth.example/token", "service": "registry.example", "scope": "repository:a/b:pull,push"}}
	const bearerText = `Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push"`
	basic := challenge{schemeBasic, params{"realm": "x"}}
	for name, c := range map[string]struct {
		lines []string
		want  []challenge
	}{
		"one":                         {[]string{bearerText}, []challenge{bearer}},
		"other case, spaces":          {[]string{"  BEARER  Realm = \"https://auth.example/token\" ,\tservice=registry.example , SCOPE=\"repository:a/b:pull,push\""}, []challenge{bearer}},
		"no commas":                   {[]string{strings.ReplaceAll(bearerText, `",s`, `" s`)}, []challenge{bearer}},
		"two lines":                   {[]string{"Negotiate", `Basic realm="x"`}, []challenge{{"negotiate", nil}, basic}},
		"one line":                    {[]string{`Negotiate, Basic realm="x"`}, []challenge{{"negotiate", nil}, basic}},
		"token68":                     {[]string{`Negotiate a1-._~+/==, Basic realm="x"`}, []challenge{{"negotiate", nil}, basic}},
		"challenge in a quoted value": {[]string{`Digest realm="a, Basic realm=\"y\"", nonce=b, Basic realm=x`}, []challenge{{"digest", params{"realm": `a, Basic realm="y"`, "nonce": "b"}}, basic}},
		"first of equal keys":         {[]string{`Basic realm="x", realm="y"`}, []challenge{basic}},
		"open quote":                  {[]string{`Basic realm="x`}, []challenge{basic}},
		"trailing backslash":          {[]string{`Basic realm="x\`}, []challenge{{schemeBasic, params{"realm": `x\`}}}},
		"empty list elements":         {[]string{`, ,Basic realm="x",,`}, []challenge{basic}},
		"parameter of nothing":        {[]string{`realm="x"`}, nil},
		"garbage, then one":           {[]string{`"()<>@, Basic realm="x"`}, []challenge{basic}},
		"scheme alone":                {[]string{"Basic"}, []challenge{{schemeBasic, nil}}},
		"empty":                       {[]string{""}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := challengesOf(http.Header{"Www-Authenticate": c.lines})
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(challenge{})); diff != "" {
				t.Error(diff)
			}
		})
	}
	if n := len(challengesOf(http.Header{"Www-Authenticate": {strings.Repeat("Basic realm=x,", 10000)}})); n != maxChallenges {
		t.Errorf("%d challenges were read", n)
	}
}

// The parser ends, returns a bounded number of challenges, and returns only text that can be sent
// on.
func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://a/b",service="c",scope="d"`, "Negotiate YII=, Basic realm=\"x\"", `Digest a="\"", b = c d=e`, `=,"`, "a b==c",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		list := challengesOf(http.Header{"Www-Authenticate": {line, line}})
		if len(list) > maxChallenges {
			t.Errorf("%d challenges", len(list))
		}
		for _, c := range list {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) || strings.ContainsAny(c.scheme, " ,=\"") {
				t.Errorf("scheme %q", c.scheme)
			}
			for k := range c.params {
				if k == "" || strings.ContainsAny(k, " ,=\"") || k != strings.ToLower(k) {
					t.Errorf("key %q", k)
				}
			}
		}
	})
}

package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// option is a flag as Go's flag package lists it.
var option = regexp.MustCompile(`(?m)^  -([a-z-]+)\b`)

// command is a line of the tool's usage.
var command = regexp.MustCompile(`(?m)^  ([a-z]+) `)

// usage returns the usage that a program prints.
func usage(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs(t), program), append(args, "--help")...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s --help: %v\n%s", program, err, out)
	}
	return string(out)
}

// interfaces returns all commands and options, by program.
func interfaces(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	add := func(program, text string) {
		for _, m := range option.FindAllStringSubmatch(text, -1) {
			found[program] = append(found[program], "--"+m[1])
		}
	}
	add("micad", usage(t, "micad"))
	mica := usage(t, "mica")
	add("mica", mica)
	for _, m := range command.FindAllStringSubmatch(mica, -1) {
		found["mica"] = append(found["mica"], m[1])
		if m[1] != "config" { // with words but no options
			add("mica", usage(t, "mica", m[1]))
		}
	}
	found["mica"] = append(found["mica"], "default", "dump", "check")
	if len(found["mica"]) < 15 || len(found["micad"]) < 2 {
		t.Fatalf("cannot parse the usage: %v", found)
	}
	return found
}

// The manual page and each shell's completion have every command and option.
func TestInterfaceIsDescribed(t *testing.T) {
	for program, words := range interfaces(t) {
		page := map[string]string{"mica": "mica.1", "micad": "micad.8"}[program]
		for path, prefix := range map[string]string{
			filepath.Join("man", page):                   `\-\-`,
			filepath.Join("completion", program+".bash"): "--",
			filepath.Join("completion", program+".fish"): "-l ",
			filepath.Join("completion", "_mica"):         "--",
		} {
			text := read(t, path)
			for _, word := range words {
				name, isOption := strings.CutPrefix(word, "--")
				if isOption {
					word = prefix + name
				}
				if !isOption && prefix == "-l " {
					word = name
				}
				if !strings.Contains(text, word) {
					t.Errorf("%s lacks %s of %s", path, word, program)
				}
			}
		}
	}
}

func TestManualPages(t *testing.T) {
	pages, err := filepath.Glob("man/*.[158]")
	if err != nil || len(pages) != 4 {
		t.Fatalf("pages: %v, %v", pages, err)
	}
	for _, page := range pages {
		if _, err := exec.LookPath("mandoc"); err == nil {
			output(t, "mandoc", "-T", "lint", "-W", "style", page)
		}
		if _, err := exec.LookPath("man"); err == nil {
			cmd := exec.CommandContext(t.Context(), "man", "--warnings=w", "-l", page)
			cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=80", "PAGER=cat", "MANPAGER=cat")
			out, err := cmd.CombinedOutput()
			if err != nil || strings.Contains(string(out), "warning:") || !strings.Contains(string(out), "NAME") {
				t.Errorf("man %s: %v\n%s", page, err, out)
			}
		}
		// The documented exit codes are those in the sources.
		if strings.HasSuffix(page, "mica-keeper.8") && !strings.Contains(read(t, page), ".B 3\n") {
			t.Errorf("%s does not document exit code 3", page)
		}
	}
}

func TestCompletionsParse(t *testing.T) {
	for shell, files := range map[string][]string{
		"bash": {"mica.bash", "micad.bash"}, "zsh": {"_mica"}, "fish": {"mica.fish", "micad.fish"},
	} {
		t.Run(shell, func(t *testing.T) {
			need(t, shell)
			for _, file := range files {
				output(t, shell, "-n", filepath.Join("completion", file))
			}
		})
	}
}

// The shells complete all commands and options.
func TestCompletions(t *testing.T) {
	const bash = `
		_init_completion() { cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD; }
		source completion/mica.bash
		COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
		_mica && printf '%s\n' "${COMPREPLY[@]}"`
	for line, want := range map[string]string{
		"mica e":                         "events",
		"mica --config /x.toml s":        "stop",
		"mica stop --k":                  "--keeper",
		"mica events --follow --pod x -": "--json",
		"mica config du":                 "dump",
		"mica debug pro":                 "profile",
		"mica debug profile gor":         "goroutine",
	} {
		words := strings.Fields(line)
		got := output(t, "bash", append([]string{"-c", bash, "bash"}, words...)...)
		if !strings.Contains(got, want+"\n") {
			t.Errorf("bash offers %q for %q", got, line)
		}
		if _, err := exec.LookPath("fish"); err != nil || strings.HasSuffix(line, " -") {
			continue // fish offers long options only after two dashes
		}
		got = output(t, "fish", "--no-config", "-c", "source completion/mica.fish; complete -C '"+line+"'")
		if !strings.Contains(got, want) {
			t.Errorf("fish offers %q for %q", got, line)
		}
	}
}

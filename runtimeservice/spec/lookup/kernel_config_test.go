package lookup

import "testing"

func TestConfigLacksX32(t *testing.T) {
	tests := map[string]bool{
		"":                                false,
		"CONFIG_X86_X32_ABI=y\n":          false,
		"# CONFIG_X86_X32_ABI is not set": true,
		"CONFIG_X86=y\n# CONFIG_X86_X32 is not set\nCONFIG_Y=y\n": true,
		"# CONFIG_X86_X32_DISABLED is not set\n":                  false,
	}
	for config, want := range tests {
		if got := configLacksX32([]byte(config)); got != want {
			t.Errorf("%q: %v, want %v", config, got, want)
		}
	}
}

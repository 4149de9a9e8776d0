// Package config is the daemon's configuration: TOML files in, the Options of
// Mica's packages out.
//
// [Config] is composed of those Options themselves, so a setting is declared,
// documented and defaulted by the package that obeys it, and there is no second
// list of settings to keep in step. Their exported fields are the keys: CertsDirs
// of imageservice.Options is certs_dirs in the table [images]. Durations are
// written "90s". What follows from data_root and state_dir is not a key.
//
// The files are read in order, /etc/mica/config.toml and then
// /etc/mica/conf.d/*.toml by name; a later value replaces an earlier one, tables
// merge, arrays do not. Reading is strict: an unknown key, a value of the wrong
// kind and a duration without a unit are errors that name file, line and column.
//
// The package knows what a setting looks like, not what it does: it opens nothing
// but the files and looks at no host. Only commands may see a whole Config.
package config

// Package config is the daemon's configuration: it reads TOML files and returns the Options of
// Mica's packages.
//
// A [Config] is composed of those Options. So the package that uses a setting also declares,
// documents and defaults it, and there is no second list of settings to maintain. The exported
// fields are the keys: CertsDirs of imageservice.Options is certs_dirs in the table [images].
// Durations are written as "90s". Values that follow from data_root and state_dir are not keys.
//
// The files are read in order: /etc/mica/config.toml, then /etc/mica/conf.d/*.toml by name. A later
// value replaces an earlier one; tables are merged, arrays are not. Reading is strict: an unknown
// key, a value of the wrong type and a duration without a unit are errors, which name file, line and
// usually column.
//
// The package checks the form of settings and implements none of them. It opens only the
// configuration files and does not look at the host. Only commands may see a whole Config. Nothing
// here has shared state, so functions and methods may be called concurrently.
package config

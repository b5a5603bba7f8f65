package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// readFelixFile reads a configuration file of Felix's, by lower-cased parameter name. A
// file that is not there says nothing.
func readFelixFile(path string) (map[string]string, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	values, err := parseFelixFile(string(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return values, nil
}

// parseFelixFile reads lines of "name = value" or "name: value"; the sections that they
// are in make no difference. Behind # or ; is a comment, but in quotes.
func parseFelixFile(text string) (map[string]string, error) {
	values := make(map[string]string)
	text = strings.TrimPrefix(text, "\ufeff") // some editors' first character
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.ContainsRune("#;[", rune(line[0])) {
			continue
		}
		at := strings.IndexAny(line, "=:")
		if at <= 0 {
			return nil, fmt.Errorf("line %d: %q: want name = value", i+1, line)
		}
		name, value := strings.TrimSpace(line[:at]), strings.TrimSpace(line[at+1:])
		if value != "" && strings.ContainsRune("\"'`", rune(value[0])) {
			end := strings.IndexByte(value[1:], value[0])
			if end < 0 {
				return nil, fmt.Errorf("line %d: %s: the quote does not end", i+1, name)
			}
			value = value[1 : 1+end]
		} else if comment := strings.IndexAny(value, "#;"); comment >= 0 {
			value = strings.TrimSpace(value[:comment])
		}
		values[strings.ToLower(name)] = value
	}
	return values, nil
}

// felixEtcd is where Felix's parameters, from places in the order of their precedence,
// say that etcd is, by the variables' names that Calico's other parts have for it.
func felixEtcd(places ...map[string]string) map[string]string {
	vars := make(map[string]string)
	for name, parameter := range map[string]string{
		"ETCD_ENDPOINTS": "etcdendpoints", "ETCD_AUTHORITY": "etcdaddr", "ETCD_SCHEME": "etcdscheme",
		"ETCD_CA_CERT_FILE": "etcdcafile", "ETCD_CERT_FILE": "etcdcertfile", "ETCD_KEY_FILE": "etcdkeyfile",
	} {
		for _, values := range places {
			if v := values[parameter]; v != "" {
				if !strings.EqualFold(v, "none") {
					vars[name] = v
				}
				break
			}
		}
	}
	return vars
}

package event

import (
	"fmt"
	"strconv"
)

// Snowflake is Discord's id: 64 bits, written as a decimal string in JSON
// because JavaScript's numbers can't hold it. 0 means none.
type Snowflake uint64

// ParseSnowflake reads the decimal form. It refuses "0" and anything over 63 bits:
// no such id exists, and PostgreSQL's bigint could not hold it.
func ParseSnowflake(s string) (Snowflake, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a Discord id (a decimal number such as 175928847299117063)", s)
	}
	return Snowflake(n), nil
}

// String returns the decimal form.
func (s Snowflake) String() string { return strconv.FormatUint(uint64(s), 10) }

#include "parse.h"

#include <stdio.h>
#include <string.h>

#define LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#define DIGITS "0123456789"
#define NAME_RULE "a name has 1 to 64 letters, digits and . _ @ + -, the first a letter or a digit"
#define DATASET_PREFIX "SCRATCH_DATASET_"
#define WAIT_RULE \
	"give 0, all, 90s, 10m, 2h, 1d, or minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS"

/* Write the head of somebody's text so that a terminal and a log can show it. */
static void quote(const char *text, size_t length, char out[NAME_LENGTH_MAX + 4])
{
	size_t shown = length < NAME_LENGTH_MAX ? length : NAME_LENGTH_MAX;

	for (size_t i = 0; i < shown; i++)
		out[i] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
	strcpy(out + shown, shown < length ? "..." : "");
}

int parse_is_name(const char *text, size_t length)
{
	return length >= 1 && length <= NAME_LENGTH_MAX && strspn(text, LETTERS DIGITS) >= 1 &&
	       strspn(text, LETTERS DIGITS "._@+-") >= length;
}

static int is_listed(const char *list, const char *name, size_t length)
{
	while (*list) {
		size_t here = strcspn(list, ",");

		if (here == length && memcmp(list, name, length) == 0)
			return 1;
		list += here;
		list += *list == ',';
	}
	return 0;
}

int parse_datasets(const char *text, char list[LIST_SIZE], char why[WHY_SIZE])
{
	char quoted[NAME_LENGTH_MAX + 4];
	const char *name = text;
	size_t length;
	char *end = list;

	*list = '\0';
	for (int count = 1;; count++) {
		length = strcspn(name, ",");
		if (count > NAMES_MAX) {
			snprintf(why, WHY_SIZE, "more than %d names", NAMES_MAX);
			goto fail;
		}
		if (!parse_is_name(name, length)) {
			quote(name, length, quoted);
			snprintf(why, WHY_SIZE, "'%s': " NAME_RULE, quoted);
			goto fail;
		}
		if (!is_listed(list, name, length)) {
			if (end != list)
				*end++ = ',';
			memcpy(end, name, length);
			end += length;
			*end = '\0';
		}
		if (name[length] == '\0')
			return 0;
		name += length + 1;
	}

fail:
	*list = '\0';
	return -1;
}

/* Take up to `digits_max` digits: 0, or -1 where there are none or more. */
static int take_number(const char **at, size_t digits_max, long long *number)
{
	size_t digits = strspn(*at, DIGITS);

	if (digits == 0 || digits > digits_max)
		return -1;
	*number = 0;
	for (; digits > 0; digits--)
		*number = *number * 10 + (*(*at)++ - '0');
	return 0;
}

/* After `D-`: HH[:MM[:SS]] */
static int take_hours(const char *at, long long *seconds)
{
	static const long long units[] = {3600, 60, 1};
	long long number;

	*seconds = 0;
	for (int i = 0; i < 3; i++) {
		if (take_number(&at, 2, &number) < 0)
			return -1;
		*seconds += number * units[i];
		if (*at == '\0')
			return 0;
		if (*at++ != ':')
			return -1;
	}
	return -1;
}

/* After the first number and its colon: SS or MM:SS */
static int take_minutes(const char *at, long long first, long long *seconds)
{
	const char *second_at = at;
	long long second, third;

	if (take_number(&at, 6, &second) < 0)
		return -1;
	if (*at == '\0') {
		*seconds = first * 60 + second;
		return at - second_at <= 2 ? 0 : -1;
	}
	if (*at++ != ':' || take_number(&at, 2, &third) < 0 || *at != '\0')
		return -1;
	*seconds = first * 3600 + second * 60 + third;
	return 0;
}

static int take_wait(const char *at, long long *seconds)
{
	static const char suffixes[] = "smhd";
	static const long long units[] = {1, 60, 3600, 86400};
	const char *suffix;
	long long first, rest;

	if (strcmp(at, "all") == 0) {
		*seconds = WAIT_ALL;
		return 0;
	}
	if (take_number(&at, 6, &first) < 0)
		return -1;
	switch (*at) {
	case '\0':
		*seconds = first * 60;
		return 0;
	case ':':
		return take_minutes(at + 1, first, seconds);
	case '-':
		if (take_hours(at + 1, &rest) < 0)
			return -1;
		*seconds = first * 86400 + rest;
		return 0;
	default:
		suffix = strchr(suffixes, *at);
		if (suffix == NULL || at[1] != '\0')
			return -1;
		*seconds = first * units[suffix - suffixes];
		return 0;
	}
}

int parse_wait(const char *text, long long *seconds, char why[WHY_SIZE])
{
	char quoted[NAME_LENGTH_MAX + 4];

	if (take_wait(text, seconds) == 0)
		return 0;
	quote(text, strlen(text), quoted);
	snprintf(why, WHY_SIZE, "'%s': " WAIT_RULE, quoted);
	return -1;
}

int parse_comment_asks(const char *comment)
{
	static const char word[] = "datasets=";
	size_t length = strlen(word);

	for (const char *at = comment; (at = strstr(at, word)) != NULL; at += length)
		if ((at == comment || at[-1] == ' ') && at[length] != '\0' && at[length] != ' ')
			return 1;
	return 0;
}

void dataset_variable(const char *name, char variable[VARIABLE_SIZE])
{
	size_t at = strlen(DATASET_PREFIX);

	strcpy(variable, DATASET_PREFIX);
	for (; *name && at < VARIABLE_SIZE - 1; name++, at++) {
		/* Not toupper(): the locale of the caller has no say. */
		if (*name >= 'a' && *name <= 'z')
			variable[at] = (char)(*name - 'a' + 'A');
		else if (strchr(LETTERS DIGITS, *name))
			variable[at] = *name;
		else
			variable[at] = '_';
	}
	variable[at] = '\0';
}

static int is_exported(const char *name)
{
	size_t prefix = strlen("SCRATCH_");

	return strncmp(name, "SCRATCH_", prefix) == 0 && name[prefix] != '\0' &&
	       name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ" DIGITS "_")] == '\0';
}

static int is_plain(const char *value)
{
	for (; *value; value++)
		if ((unsigned char)*value < ' ' || *value == 0x7f)
			return 0;
	return 1;
}

int parse_report_line(char **cursor, char **name, char **value)
{
	while (**cursor) {
		char *line = *cursor;
		size_t length = strcspn(line, "\n");
		char *equals;

		*cursor += length + (line[length] == '\n');
		line[length] = '\0';
		equals = strchr(line, '=');
		if (equals == NULL || length > REPORT_LINE_MAX)
			continue;
		*equals = '\0';
		*name = line;
		*value = equals + 1;
		if ((is_exported(*name) || strcmp(*name, "message") == 0) && is_plain(*value))
			return 1;
	}
	return 0;
}

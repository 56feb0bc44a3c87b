-- Jobs go to their data: turn --datasets into a preference for the nodes that have the datasets cached.
--
-- For slurmctld's job_submit/lua (JobSubmitPlugins=lua), loaded by job_submit.lua: see the one beside this file.
--
-- It also writes the names into the job's admin comment, where nothing is there, and refuses a job whose control
-- environment no prolog could be started with.
--
-- It needs SchedulerParameters=ignore_prefer_validation in slurm.conf: without it Slurm refuses a job that prefers a
-- feature that no node has at that moment. Where that is missing it sets no preference, and says so once in
-- slurmctld's log.
--
-- A preference never refuses a job, nor makes it wait: --prefer is dropped when it cannot be met at once. It
-- replaces --constraint while it can be met, so it repeats it. Everything that comes from the job is a stranger's text:
-- only expressions that Slurm is known to take are made of it.
--
-- This runs in slurmctld, under its locks: no program is started, and nothing is read after the start but the job.
-- Lua 5.1 to 5.4: Slurm takes whichever it was built with.

local M = {}

-- As slurm.feature_prefix in scratch-slurm's configuration.
M.feature_prefix = "ds:"

-- The administrator's word whether within each partition every node can run what any other can. Only of use where
-- `can_hold` is true, from Slurm 24.11.4 on. Without one slurm.conf tells, where it is certain.
M.nodes_are_alike = nil

-- Whether a job's admin comment, which others may see, tells its datasets.
M.admin_comment = true

local NAME = "^[A-Za-z0-9][A-Za-z0-9._@+-]*$"
local MAX_DATASETS = 64
local MAX_NAME = 64
local MAX_LIST = MAX_DATASETS * (MAX_NAME + 1)
local MAX_VARIABLES = 256
-- Slurm refuses a job whose constraint or preference is longer: _test_job_desc_fields() in job_mgr.c.
local MAX_EXPRESSION = 1024
-- What is a name in a constraint: neither an operator nor a blank or control character.
local WORD = "^[^%s%c%[%]()|&*,!]+$"
-- Slurm refuses a job whose admin comment is longer.
local MAX_COMMENT = 1024
-- No program starts with an environment string of 128 KiB or more, nor with more than 2 MB of them (a quarter of the
-- usual stack): execve(2). Slurm adds its own to both, and drains the node when a prolog does not start.
local MAX_STRING = 120 * 1024
local MAX_ENVIRONMENT = 1024 * 1024
local MAX_NODES = 65536

-- slurm.conf, as far as it matters.

local function directory_of(path)
    return string.match(path, "^(.*)/[^/]*$") or "."
end

-- Call `take` with the first key of every line of a slurm.conf and what it includes, and with the rest of the line.
-- Returns whether the file could be read, and whether all of it was understood.
local function read_conf(path, take, depth)
    local file = io.open(path, "r")
    local text = file and file:read("*a")
    if file then
        file:close()
    end
    if not text then
        return false, false -- io.open() opens a directory too
    end
    local is_understood = true
    text = string.gsub(text, "\\\r?\n", "") -- a line goes on after a backslash
    for line in string.gmatch(text, "[^\r\n]+") do
        line = string.gsub(line, "#.*$", "")
        local included = string.match(line, "^%s*[Ii][Nn][Cc][Ll][Uu][Dd][Ee]%s+(%S+)%s*$")
        local key, value = string.match(line, "^%s*(%w+)%s*=%s*(.-)%s*$")
        if included and depth > 0 then
            local absolute = string.sub(included, 1, 1) == "/"
            local name = absolute and included or directory_of(path) .. "/" .. included
            local _, understood = read_conf(name, take, depth - 1)
            is_understood = is_understood and understood
        elseif key then
            take(string.lower(key), value)
        elseif string.match(line, "%S") then
            is_understood = false
        end
    end
    return true, is_understood
end

-- Tell whether the first slurm.conf of `paths` that can be read turns the validation of preferences off.
function M.read_validation_is_off(paths)
    local off = false
    for index = 1, #paths do
        local could_read = read_conf(paths[index], function(key, value)
            if key == "schedulerparameters" then
                -- The last line counts, and any part of it, as in Slurm's own reading.
                off = string.find(string.lower(value), "ignore_prefer_validation", 1, true) ~= nil
            end
        end, 5)
        if could_read then
            return off
        end
    end
    return false
end

local function conf_paths()
    local paths = { os.getenv("SLURM_CONF") }
    -- Beside this file, and beside the job_submit.lua that loads it.
    for level = 1, 10 do
        local frame = debug and debug.getinfo(level, "S")
        local script = frame and string.match(frame.source, "^@(.*)$")
        if script then
            paths[#paths + 1] = directory_of(script) .. "/slurm.conf"
        end
    end
    for _, directory in ipairs({ "/etc/slurm", "/usr/local/etc", "/etc/slurm-llnl" }) do
        paths[#paths + 1] = directory .. "/slurm.conf"
    end
    return paths
end

-- Which nodes are alike, by slurm.conf. Whatever is not understood is not certain.

-- The names of a list like `n[1-3,07],m1`; nil for what is none.
function M.expand(list)
    local names = {}
    local function add(head, tail)
        local before, ranges, after = string.match(tail, "^([^%[%]]*)%[([^%[%]]*)%](.*)$")
        if not before then
            names[#names + 1] = head .. tail
            return #names <= MAX_NODES and string.match(head .. tail, "^%w[%w._-]*$") ~= nil
        end
        for range in string.gmatch(ranges .. ";", "([^;]*);") do
            local first, last = string.match(range, "^(%d+)%-(%d+)$")
            first = first or string.match(range, "^%d+$")
            last = last or first
            if not first or #last > 9 or tonumber(first) > tonumber(last) then
                return false
            end
            if #first ~= #last and string.match(first .. "-" .. last, "%f[%d]0%d") then
                return false
            end
            for number = tonumber(first), tonumber(last) do
                if not add(head .. before .. string.format("%0" .. #first .. "d", number), after) then
                    return false
                end
            end
        end
        return true
    end
    if string.find(list, ";", 1, true) then
        return nil
    end
    local outside = string.gsub(list, "%b[]", function(ranges)
        return (string.gsub(ranges, ",", ";"))
    end)
    for item in string.gmatch(outside .. ",", "([^,]*),") do
        if not add("", item) then
            return nil
        end
    end
    return names
end

-- The rest of a NodeName, PartitionName or NodeSet line: its name or names, and its other keys, over `defaults`.
local function parse_line(text, defaults)
    local values = {}
    for key, value in pairs(defaults) do
        values[key] = value
    end
    local name, rest = string.match(string.gsub(text, "%s*=%s*", "="), "^(%S+)(.*)$")
    if not name then
        return nil
    end
    local function take(key, value)
        values[string.lower(key)] = string.lower(value)
        return ""
    end
    rest = string.gsub(rest, '%s+(%w+)="([^"]*)"', take)
    rest = string.gsub(rest, '%s+(%w+)=([^%s"=]*)', take)
    if string.match(rest, "%S") or string.find(text, "\\", 1, true) then
        return nil
    end
    return name, values
end

-- What does not say what a node can run.
local ADMINISTRATIVE = { nodehostname = true, nodeaddr = true, bcastaddr = true, port = true, reason = true,
    weight = true, state = true }
local USUAL_STATES = { unknown = true, idle = true, cloud = true, down = true, drain = true, fail = true }

-- All that says what a node can run, in one text; nil for a node that is none yet.
local function kind_of(values)
    if values.state and not USUAL_STATES[values.state] then
        return nil
    end
    local words = {}
    for key, value in pairs(values) do
        if not ADMINISTRATIVE[key] then
            words[#words + 1] = key .. "=" .. value
        end
    end
    table.sort(words)
    return table.concat(words, " ")
end

-- `gpu:4` leaves the type to gres.conf and to what the node finds, `gpu:a100:4` does not.
local function has_untyped_gres(gres)
    for item in string.gmatch(gres or "", "[^,]+") do
        local name, second = string.match(item, "^([^:]+):?([^:]*)")
        if not name or second == "" or string.match(second, "^%d") then
            return true
        end
    end
    return false
end

-- Which nodes a partition has: a table of their names; nil where that is not certain.
local function nodes_of(list, conf)
    local members = {}
    if list == "all" then
        for name in pairs(conf.kinds) do
            members[name] = true
        end
        return members
    end
    for _, name in ipairs(M.expand(list) or { "" }) do
        local set = conf.sets[name]
        local names = set and M.expand(set) or { name }
        for _, each in ipairs(names) do
            if set == false or conf.kinds[each] == nil then
                return nil
            end
            members[each] = true
        end
    end
    return members
end

-- Read the first slurm.conf of `paths` that can be read.
-- Returns partition -> { nodes = names, untyped = its nodes have GRES without a type } for each in which every node can
-- run what any other can, and partition -> why not for the others; nil and why when nothing is certain.
function M.read_alike(paths)
    local conf = { kinds = {}, gres = {}, sets = {} }
    local partitions, defaults = {}, { nodename = {}, partitionname = {} }
    local problem
    local function take_node(name, values)
        for _, each in ipairs(M.expand(string.lower(name)) or { false }) do
            if not each or conf.kinds[each] ~= nil then
                problem = problem or "NodeName=" .. name .. " is not understood"
                return
            end
            conf.kinds[each] = kind_of(values) or false
            conf.gres[each] = values.gres
        end
    end
    local function take(key, value)
        if key == "maxnodecount" then
            problem = problem or "with MaxNodeCount nodes come and go"
        elseif key == "nodename" or key == "partitionname" or key == "nodeset" then
            local name, values = parse_line(value, defaults[key] or {})
            if not name then
                problem = problem or key .. "=" .. string.sub(value, 1, 60) .. " is not understood"
            elseif key == "nodeset" then
                local set = string.lower(name)
                conf.sets[set] = conf.sets[set] == nil and not values.feature and values.nodes or false
            elseif string.lower(name) == "default" then
                defaults[key] = values
            elseif key == "nodename" then
                take_node(name, values)
            else
                partitions[name] = partitions[name] == nil and (values.nodes or "") or false
            end
        elseif string.find(string.lower(value), "%f[%w]nodename%s*=") then
            problem = problem or "a line with " .. key .. " names nodes too"
        end
    end
    local could_read, is_understood
    for index = 1, #paths do
        could_read, is_understood = read_conf(paths[index], take, 5)
        if could_read then
            break
        end
    end
    if not could_read or not is_understood or problem then
        return nil, problem or (could_read and "not all of slurm.conf is understood" or "slurm.conf is not found")
    end
    local alike, why = {}, {}
    for partition, list in pairs(partitions) do
        local nodes = list and nodes_of(list, conf)
        local first = nodes and next(nodes)
        why[partition] = not first and "its nodes are not certain" or nil
        local untyped = false
        for name in pairs(nodes or {}) do
            if not conf.kinds[name] or conf.kinds[name] ~= conf.kinds[first] then
                why[partition] = string.format("nodes %s and %s are not defined the same", first, name)
            end
            untyped = untyped or has_untyped_gres(conf.gres[name])
        end
        if not why[partition] then
            alike[partition] = { nodes = nodes, untyped = untyped }
        end
    end
    return alike, why
end

-- Messages.

local function log(level, format, ...)
    local write = slurm and slurm["log_" .. level]
    if write then
        pcall(write, format, ...)
    end
end

-- The job's expressions.

-- A word `datasets=a,b` of the job's comment asks where the option does not, as for the hooks: what submits without
-- plugins can set that.
local function asked_in_comment(comment)
    for word in string.gmatch(type(comment) == "string" and comment or "", "[^ ]+") do
        local datasets = string.match(word, "^datasets=(.+)$")
        if datasets then
            return datasets
        end
    end
    return nil
end

-- The request in the job control environment ("NAME=value", from 0 on): the dataset list, and whether it is required.
local function request_of(job_desc)
    local variables = job_desc.spank_job_env
    local datasets, required = nil, false
    for index = 0, type(variables) == "table" and MAX_VARIABLES - 1 or -1 do
        local variable = variables[index]
        if type(variable) == "string" then
            datasets = datasets or string.match(variable, "^DATASETS=(.*)$")
            required = required or variable == "DATASETS_REQUIRED=1"
        end
    end
    if datasets == nil or datasets == "" then
        return asked_in_comment(job_desc.comment), false
    end
    return datasets, required
end

-- The names of a dataset list, each once; nil when the list is not what the plugin would have sent.
local function names_of(datasets)
    if #datasets > MAX_LIST then
        return nil
    end
    local names, seen = {}, {}
    for name in string.gmatch(datasets .. ",", "([^,]*),") do
        if #name > MAX_NAME or not string.match(name, NAME) then
            return nil
        end
        if not seen[name] then
            seen[name] = true
            names[#names + 1] = name
        end
    end
    return #names <= MAX_DATASETS and names or nil
end

-- Make the features of a dataset list; nil when it is none.
function M.features_of(datasets)
    local features = names_of(datasets)
    for index, name in ipairs(features or {}) do
        features[index] = M.feature_prefix .. name
    end
    return features
end

-- Tell whether all parts of `text` between separators satisfy `accept`.
local function all_parts(text, separator, accept)
    for part in string.gmatch(text .. separator, "([^" .. separator .. "]*)" .. separator) do
        if not accept(part) then
            return false
        end
    end
    return true
end

local function is_word(text)
    return string.match(text, WORD) ~= nil
end

-- (a|b) or (a&b), of words: Slurm has no parentheses in parentheses.
local function is_group(text)
    local inner = string.match(text, "^%(([^()]*)%)$")
    return inner ~= nil and (all_parts(inner, "|", is_word) or all_parts(inner, "&", is_word))
end

-- Rewrite a constraint so that `&feature` can follow it: words and groups joined by &, or words joined by |. nil for
-- anything else: counts, brackets, & beside | without parentheses, which nobody can extend without changing it.
local function extensible(constraint)
    if all_parts(constraint, "|", is_word) then
        local one = not string.find(constraint, "|", 1, true)
        return one and constraint or "(" .. constraint .. ")"
    end
    if string.find(constraint, "%c") then
        return nil
    end
    -- A group counts as one sign that no word has, so that the & in it is none.
    local flat = string.gsub(constraint, "%b()", function(group)
        return is_group(group) and "\1" or "()"
    end)
    local function is_term(text)
        return text == "\1" or is_word(text)
    end
    return all_parts(flat, "&", is_term) and constraint or nil
end

-- Join the user's own constraint with features that must all be there; the first ones where Slurm's limit on the
-- length does not allow all. Returns the expression and how many features it has, or nil and why not.
function M.join(constraint, features)
    local joined = ""
    if constraint ~= nil and constraint ~= "" then
        joined = #constraint <= MAX_EXPRESSION and extensible(constraint) or nil
        if not joined then
            return nil, "the job's constraint is not one that can be added to"
        end
    end
    for index, feature in ipairs(features) do
        local longer = joined == "" and feature or joined .. "&" .. feature
        if #longer > MAX_EXPRESSION then
            if index == 1 then
                return nil, "the job's constraint is too long to be added to"
            end
            return joined, index - 1
        end
        joined = longer
    end
    return joined, #features
end

-- What is done with a job.

-- Takes a job's preference away. Slurm takes an empty one for no change; no dataset has this name, so no node does.
local function nowhere()
    return M.feature_prefix .. "-"
end

-- Seen on 22.05.8: an array whose preference no node has waits (BadConstraints) until one has it, where any other job
-- falls back at once. So no preference for arrays; a constraint works for them as for others.
local function is_array(job)
    return (job.array_inx ~= nil and job.array_inx ~= "") or (tonumber(job.array_job_id) or 0) > 0
end

-- Slurm 24.11 and later tries the preference of a job first, and holds the job for ever (BadConstraints, priority 0) when
-- nodes have the features but could never run it: too few nodes, too small ones, others than it names. Seen on 24.11.5
-- and 26.05.5; schedule() in job_scheduler.c. When no node at all has the features it goes on
-- without them, from 24.11.4 on. A script is not told the release, but this error came with 24.11.
local function can_hold()
    return slurm ~= nil and slurm.ESLURM_AUTH_EXPIRED ~= nil
end

-- Slurm's numbers that are not set are its largest ones.
local function is_number(value)
    return type(value) == "number" and value < 0xfffffff0
end

local function is_text(value)
    return type(value) == "string" and value ~= ""
end

-- Tell whether one node is enough for a job; of one that leaves it to Slurm that is not certain.
local function is_on_one_node(job)
    local function at_most_one(number)
        return not is_number(number) or number <= 1
    end
    return job.max_nodes == 1
        or at_most_one(job.min_nodes) and at_most_one(job.num_tasks) and not is_text(job.tres_per_job)
end

-- Tell whether a job asks for GRES of a type, or in a form that is not known.
local function asks_for_a_type(job)
    for _, field in ipairs({ "gres", "tres_per_node", "tres_per_job", "tres_per_socket", "tres_per_task" }) do
        local asked = job[field]
        for item in string.gmatch(is_text(asked) and asked or "", "[^,]+") do
            local wanted = string.match(item, "^gres[:/](.*)$") or item
            if not string.match(wanted, "^[%w_]+$") and not string.match(wanted, "^[%w_]+[:=]%d+%a?$") then
                return true
            end
        end
    end
    return false
end

-- Tell whether a partition has just the nodes that slurm.conf gave it when this file was loaded.
local function is_as_read(known, partition)
    local now = partition.nodes
    if not is_text(now) then
        return false
    end
    if known.seen ~= now then -- of thousands of nodes: once, not for every job
        local names, count, is_same = M.expand(string.lower(now)) or {}, 0, true
        for _, name in ipairs(names) do
            is_same = is_same and known.nodes[name] ~= nil
        end
        for _ in pairs(known.nodes) do
            count = count + 1
        end
        known.seen, known.is_same = now, is_same and #names == count
    end
    return known.is_same
end

-- Tell whether in the job's partitions each node can run what any other can.
local function is_among_alike_nodes(job, part_list)
    if M.nodes_are_alike ~= nil then
        return M.nodes_are_alike
    end
    local wanted = is_text(job.partition) and job.partition or nil
    if type(part_list) ~= "table" then
        return false
    end
    for name, partition in pairs(part_list) do
        if not wanted and partition.flag_default == 1 then
            wanted = name
        end
    end
    for name in string.gmatch(wanted or "-", "[^,]+") do
        local known, partition = M.alike[name], part_list[name]
        if not known or not partition or not is_as_read(known, partition) then
            return false
        end
        if known.untyped and asks_for_a_type(job) then
            return false
        end
    end
    return true
end

local function prefer(job_desc, features, part_list)
    if is_array(job_desc) then
        return nil, "the job is an array"
    end
    -- There is nothing to choose, and Slurm 22.05 lets the job wait for its next round of backfill.
    if is_text(job_desc.req_nodes) then
        return nil, "the job names its nodes"
    end
    if can_hold() and not is_among_alike_nodes(job_desc, part_list) then
        return nil, "this Slurm may hold the job for it, as the nodes of its partition may not be alike"
    end
    if can_hold() and not is_on_one_node(job_desc) then
        return nil, "this Slurm may hold the job for it, unless it is on one node"
    end
    if can_hold() and is_text(job_desc.reservation) then
        return nil, "this Slurm may hold the job for it, as its reservation has nodes of its own"
    end
    if job_desc.prefer and job_desc.prefer ~= "" then
        return nil, "the job has a preference of its own"
    end
    if not M.validation_is_off then
        return nil, "SchedulerParameters lacks ignore_prefer_validation"
    end
    local joined, count = M.join(job_desc.features, features)
    if not joined then
        return nil, count
    end
    job_desc.prefer = joined
    return joined
end

-- The constraint binds; a preference of the user's, which would replace it, is bound too.
local function require_all(job_desc, features)
    local joined, count = M.join(job_desc.features, features)
    if not joined then
        log("user", "scratch-slurm: --datasets-required does nothing: %s", count)
        return nil, count
    end
    if job_desc.prefer and job_desc.prefer ~= "" then
        local preferred, preferred_count = M.join(job_desc.prefer, features)
        if not preferred or preferred_count < count or not M.validation_is_off then
            log("user", "scratch-slurm: --prefer does nothing: it cannot be joined with --datasets-required")
            preferred = ""
        end
        job_desc.prefer = preferred
    end
    job_desc.features = joined
    local few = count < #features and string.format(" (%d of %d: no room for more)", count, #features) or ""
    log("user", "scratch-slurm: --datasets-required: the job needs nodes with %s%s",
        table.concat(features, ", ", 1, math.min(count, 5)) .. (count > 5 and ", ..." or ""), few)
    return joined
end

local function submit(job_desc, part_list)
    local datasets, required = request_of(job_desc)
    if not datasets then
        return nil, "no --datasets"
    end
    local features = M.features_of(datasets)
    if not features then
        return nil, "the list of datasets is not one"
    end
    return (required and require_all or prefer)(job_desc, features, part_list)
end

-- Who asked for what at submit, for people and accounting.
local function note(job_desc)
    local datasets = request_of(job_desc)
    local names = datasets and names_of(datasets)
    if not M.admin_comment or not names or is_text(job_desc.admin_comment) then
        return nil, "no --datasets, or a comment is there"
    end
    local text = "datasets=" .. table.concat(names, ",")
    if #text > MAX_COMMENT then
        -- Whole names only.
        text = string.match(string.sub(text, 1, MAX_COMMENT - 3), "^(.*,)") .. "..."
    end
    job_desc.admin_comment = text
    return text
end

-- Tell why no prolog could be started with a job's control environment; nil when one can.
local function environment_problem(job_desc)
    local variables = job_desc.spank_job_env
    if type(variables) ~= "table" then
        return nil
    end
    local total = 0
    for _, variable in pairs(variables) do
        if type(variable) == "string" then
            if #variable > MAX_STRING then
                local name = string.gsub(string.sub(string.match(variable, "^[^=]*"), 1, 32), "[^%w_]", "?")
                return string.format("variable %s has %d bytes, at most %d are possible", name, #variable, MAX_STRING)
            end
            total = total + #variable + 16 -- a pointer, a prefix of Slurm's
        end
    end
    if total > MAX_ENVIRONMENT then
        return string.format("it takes %d bytes, at most %d are possible", total, MAX_ENVIRONMENT)
    end
    return nil
end

-- The preference repeats the constraint: when `scontrol update job` changes this, that follows, or the job would run on
-- what the old constraint allows. Slurm 22.05 does not tell a script what the job prefers: there a preference of the
-- user's own is replaced too, which would not have obeyed the new constraint either.
local function follow(job_desc, job_rec)
    local constraint, preferred = job_desc.features, job_rec.prefer
    if not constraint or (job_desc.prefer and job_desc.prefer ~= "") then
        return nil, "the constraint alone is not changed"
    end
    local datasets, required = request_of(job_rec)
    local features = datasets and not required and not is_array(job_rec) and M.features_of(datasets)
    if not features or not M.validation_is_off then
        return nil, "the job has no preference of ours"
    end
    if preferred and preferred ~= "" and preferred ~= M.join(job_rec.features, features) then
        return nil, "the job has a preference of its own"
    end
    local joined, count = M.join(constraint, features)
    job_desc.prefer = joined or nowhere()
    return joined, count
end

-- Where Slurm can hold a job for its preference, one that is given another shape loses it: a script is told neither what
-- it prefers nor all of its old shape. A job that runs cannot be changed so.
local function forget(job_desc, job_rec, part_list)
    local is_reshaped = job_desc.features ~= nil
        or is_number(job_desc.min_nodes) or is_number(job_desc.max_nodes) or is_number(job_desc.num_tasks)
    for _, field in ipairs({ "req_nodes", "tres_per_job", "tres_per_node", "partition", "reservation" }) do
        is_reshaped = is_reshaped or is_text(job_desc[field])
    end
    if not is_reshaped or is_text(job_desc.prefer) or not is_among_alike_nodes(job_rec, part_list) then
        return nil, "it has none of ours, or keeps it"
    end
    local datasets, required = request_of(job_rec)
    if not datasets or required or is_array(job_rec) or (tonumber(job_rec.job_state) or 0) % 256 ~= 0 then
        return nil, "the job has no preference of ours"
    end
    job_desc.prefer = nowhere()
    return job_desc.prefer
end

local function modify(job_desc, job_rec, part_list)
    return (can_hold() and forget or follow)(job_desc, job_rec, part_list)
end

-- Run `act`; whatever goes wrong in it does not refuse the job. Returns what it returns, or nil.
local function guarded(what, act, ...)
    local ran, result, why = pcall(act, ...)
    if not ran then
        log("error", "scratch-slurm: job_submit: cannot %s: %s", what, tostring(result))
        return nil
    end
    if not result and why then
        log("debug", "scratch-slurm: job_submit: did not %s: %s", what, tostring(why))
    end
    return result
end

-- For slurm_job_submit(): returns what that is to return. Without `part_list` nodes are alike only by the site's word.
function M.submit(job_desc, part_list)
    local problem = guarded("measure the control environment", environment_problem, job_desc)
    if problem then
        log("user", "scratch-slurm: refused: no prolog could run with what this job's SPANK plugins put into its "
            .. "control environment: %s", problem)
        return slurm.ERROR
    end
    guarded("set a preference", submit, job_desc, part_list)
    guarded("write the admin comment", note, job_desc)
    return slurm.SUCCESS
end

-- For slurm_job_modify(), as M.submit().
function M.modify(job_desc, job_rec, part_list)
    guarded("change the preference", modify, job_desc, job_rec, part_list)
    return slurm.SUCCESS
end

-- Read once, here: slurmctld has read the same lines just now. Later the file can say what slurmctld does not do yet.
do
    local ran, off = pcall(function()
        return M.read_validation_is_off(conf_paths())
    end)
    M.validation_is_off = ran and off
    if not M.validation_is_off then
        log("error", "scratch-slurm: job_submit: no job will prefer the nodes that have its datasets: slurm.conf lacks "
            .. "SchedulerParameters=ignore_prefer_validation")
    end
end

M.alike = {}
if can_hold() then
    local ran, alike, why = pcall(function()
        return M.read_alike(conf_paths())
    end)
    M.alike = ran and alike or {}
    local names = {}
    for name in pairs(M.alike) do
        names[#names + 1] = name
    end
    table.sort(names)
    log("info", "scratch-slurm: job_submit: partitions whose nodes are alike by slurm.conf: %s",
        #names > 0 and table.concat(names, ", ") or "none")
    for name, reason in pairs(type(why) == "table" and why or { any = ran and why or alike }) do
        log("info", "scratch-slurm: job_submit: partition %s: no job will prefer the nodes that have its datasets, as "
            .. "this Slurm may hold it for that: %s; if nodes are alike, set nodes_are_alike", name, tostring(reason))
    end
end

-- A script that loads this one may have made its own before.
slurm_job_submit = slurm_job_submit or M.submit
slurm_job_modify = slurm_job_modify or M.modify

return M

-- Jobs go to their data: turn --datasets into a preference for the nodes that have the datasets cached.
--
-- For slurmctld's job_submit/lua (JobSubmitPlugins=lua). A site without a job_submit.lua of its own links this file to
-- /etc/slurm/job_submit.lua; any other loads it and calls prefer() from its slurm_job_submit():
--
--     local scratch_slurm = dofile("/usr/local/lib/scratch-slurm/scratch_slurm.lua")
--     function slurm_job_submit(job_desc, part_list, submit_uid)
--         scratch_slurm.prefer(job_desc)
--         ...
--
-- It needs SchedulerParameters=ignore_prefer_validation in slurm.conf: without it Slurm refuses a job that prefers a
-- feature that no node has at that moment. It says so in slurmctld's log, and does nothing, where that is missing.
-- A job is never refused, and never waits, because of a preference: --prefer is dropped when it cannot be met at once.

local M = {}

-- As slurm.feature_prefix in scratch-slurm's configuration.
M.feature_prefix = "ds:"

-- Where SchedulerParameters is looked for; the first that can be read counts.
M.slurm_conf_files = { os.getenv("SLURM_CONF") or "/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf" }

local NAME = "^[A-Za-z0-9][A-Za-z0-9._@+%-]*$"
local MAX_DATASETS = 64
local MAX_NAME = 64

-- Find `name` among the job's control variables: a table of "NAME=value", from 0 on.
local function control_variable(job_desc, name)
    local env = job_desc.spank_job_env
    for index = 0, (job_desc.spank_job_env_size or 0) - 1 do
        local value = string.match(env[index] or "", "^" .. name .. "=(.*)$")
        if value then
            return value
        end
    end
    return nil
end

-- Make the features of a dataset list; nil when the list is not what the plugin would have sent. Users can send anything.
function M.features_of(datasets)
    local features, count = {}, 0
    for name in string.gmatch(datasets .. ",", "([^,]*),") do
        count = count + 1
        if count > MAX_DATASETS or #name > MAX_NAME or not string.match(name, NAME) then
            return nil
        end
        features[#features + 1] = M.feature_prefix .. name
    end
    return features
end

-- Join the user's own constraint with features that must all be there.
function M.join(constraint, features)
    local all = table.concat(features, "&")
    if constraint == nil or constraint == "" then
        return all
    end
    -- Counts and matching-or ([a|b], a*2) cannot be put into a longer expression.
    if string.find(constraint, "[%[%]*]") then
        return nil
    end
    if string.find(constraint, "|", 1, true) and not string.match(constraint, "^%b()$") then
        constraint = "(" .. constraint .. ")"
    end
    return constraint .. "&" .. all
end

local function validation_is_off()
    for _, path in ipairs(M.slurm_conf_files) do
        local file = io.open(path, "r")
        if file then
            local text = file:read("*a")
            file:close()
            for line in string.gmatch(text .. "\n", "([^\n]*)\n") do
                local key, value = string.match(line, "^%s*([%w]+)%s*=%s*(.*)$")
                if key and string.lower(key) == "schedulerparameters" then
                    return string.find(string.lower(value), "ignore_prefer_validation", 1, true) ~= nil
                end
            end
            return false
        end
    end
    return false
end

-- Set the job's preference (or, with --datasets-required, its constraint). Returns what it set, or nil and why not.
function M.prefer(job_desc)
    local datasets = control_variable(job_desc, "DATASETS")
    if not datasets then
        return nil, "no --datasets"
    end
    local features = M.features_of(datasets)
    if not features then
        return nil, "not a list of datasets"
    end
    local joined = M.join(job_desc.features, features)
    if not joined then
        return nil, "the constraint cannot be joined"
    end
    if control_variable(job_desc, "DATASETS_REQUIRED") == "1" then
        job_desc.features = joined
        return joined
    end
    if job_desc.prefer and job_desc.prefer ~= "" then
        return nil, "the user has a preference of his own"
    end
    if not validation_is_off() then
        return nil, "SchedulerParameters lacks ignore_prefer_validation"
    end
    job_desc.prefer = joined
    return joined
end

function slurm_job_submit(job_desc, _part_list, _submit_uid)
    -- Whatever goes wrong here must not refuse the job.
    local ran, result, why = pcall(M.prefer, job_desc)
    if not ran then
        slurm.log_error("scratch-slurm: cannot prefer: %s", tostring(result))
    elseif why and why ~= "no --datasets" then
        slurm.log_info("scratch-slurm: no preference: %s", why)
    end
    return slurm.SUCCESS
end

function slurm_job_modify(_job_desc, _job_rec, _part_list, _modify_uid)
    return slurm.SUCCESS
end

return M
